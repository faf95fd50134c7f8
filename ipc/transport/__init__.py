"""Bytes, sockets and file descriptors between processes."""
