"""Time, memory and gradient error, side by side."""
