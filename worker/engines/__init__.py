"""Engines: one file per kind of model, all with the interface of execution/engine.py."""
