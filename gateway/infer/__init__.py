"""POST .../infer, by aiohttp or by the fast path, and its caches."""
