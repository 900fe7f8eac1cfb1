"""Tables: what the datasets say, one module per family, and how a table is written."""
