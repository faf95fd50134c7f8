"""Requests that wait for a worker, and that models which are asleep are loaded for them."""
