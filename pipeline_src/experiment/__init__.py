"""Runs: specifications in, records out."""
