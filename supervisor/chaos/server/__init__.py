"""The server under test: one that this package starts, or one that runs already."""
