"""Ranks as processes: started, interrupted, resumed."""
