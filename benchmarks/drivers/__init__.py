"""How each compared server is started, and its requests and replies."""
