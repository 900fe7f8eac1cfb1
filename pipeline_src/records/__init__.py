"""What a run leaves behind, whole or not at all, and with which code and where."""
