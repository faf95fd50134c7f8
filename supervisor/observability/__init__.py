"""Console lines, the event log, the output of models."""
