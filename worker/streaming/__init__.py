"""Requests that are open side by side: models that answer many times or not at all, and models that await."""
