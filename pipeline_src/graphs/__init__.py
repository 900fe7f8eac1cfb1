"""Graphs: fetched, read, checked, split, made."""
