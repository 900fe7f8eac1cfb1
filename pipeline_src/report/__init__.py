"""Datasets become tables, figures and one page."""
