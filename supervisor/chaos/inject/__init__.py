"""How each fault is brought about."""
