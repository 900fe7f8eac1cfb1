"""A graph of one's own: arrays from a file, checked, become a Graph."""
