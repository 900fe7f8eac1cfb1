"""Training of graph neural networks on compressed activations."""
