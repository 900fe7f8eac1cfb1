"""Which settings of activation compression to choose."""
