"""Chooses which requests run together, and when. Pure."""
