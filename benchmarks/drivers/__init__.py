"""How each server is started and spoken to."""
