"""Batches to and from a CUDA device."""
