"""torch.compile with codes: a pass over the two graphs of a compiled step."""
