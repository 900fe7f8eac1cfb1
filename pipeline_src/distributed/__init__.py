"""One graph's training, spread over processes."""
