"""Console lines, event log, output of models."""
