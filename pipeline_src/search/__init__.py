"""The least memory for an accuracy, or the reverse; knows no networks."""
