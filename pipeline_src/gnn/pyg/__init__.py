"""PyTorch Geometric's own layers, with PyTorch's ways to save memory, to compare."""
