"""Which law positions in a block follow, and the boundaries it gives."""
