"""Bytes, sockets and descriptors between processes."""
