"""Networks and operations that keep compressed activations for backward."""
