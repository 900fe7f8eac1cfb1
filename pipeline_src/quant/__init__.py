"""Numbers: tensors in, tensors out; no graphs, no files, no clock."""
