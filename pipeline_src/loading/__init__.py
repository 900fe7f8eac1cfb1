"""Mini-batches of a graph: sampled, normalised, prefetched."""
