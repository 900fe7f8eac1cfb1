"""Graphs, and networks that keep compressed activations for backward."""
