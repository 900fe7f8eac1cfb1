"""What `make gpu` measures, for a machine that has PyTorch and little else."""
