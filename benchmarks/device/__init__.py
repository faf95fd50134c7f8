"""Measurements of how processes share a GPU, on which worker and supervisor rely."""
