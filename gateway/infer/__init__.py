"""Inference requests: the handler for aiohttp, the fast path, and its caches."""
