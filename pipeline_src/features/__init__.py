"""Which bits to store node features in."""
