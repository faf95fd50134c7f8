"""Memory of a GPU that clients share with the server."""
