"""The Open Inference Protocol v2 with Triton's extensions: bytes to tensors and back. Pure."""
