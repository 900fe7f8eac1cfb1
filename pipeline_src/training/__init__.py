"""One training: a specification and a graph in, a record out."""
