"""Runs the engine on a batch, and turns its failures into errors for the callers."""
