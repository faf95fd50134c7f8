"""Shared memory: the arena of each link, status pages, counter tables."""
