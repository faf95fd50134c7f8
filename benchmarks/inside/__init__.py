"""Stages of a request, timed inside one process: the product's own code over real sockets."""
