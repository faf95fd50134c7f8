"""Transfers batches to a CUDA device and results back."""
