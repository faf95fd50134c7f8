"""Run the engine on a batch; turn its failures into answers."""
