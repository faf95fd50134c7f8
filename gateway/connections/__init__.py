"""Sockets and connections: accept, fast connection, aiohttp connection, limits."""
