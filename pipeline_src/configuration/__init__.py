"""A configuration is checked before anything runs, and becomes plans."""
