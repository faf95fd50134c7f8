"""Requests that belong to a sequence: their order, and the worker that has their state."""
