"""Figures: datasets in, ggplots out. No files, no torch; names of variables only."""
