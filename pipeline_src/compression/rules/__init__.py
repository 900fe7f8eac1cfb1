"""Rules: what single torch functions keep for backward."""
