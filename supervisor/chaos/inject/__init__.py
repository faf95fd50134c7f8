"""Brings faults about: signals, requests to fault models, loads, misbehaving clients."""
