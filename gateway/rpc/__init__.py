"""gRPC in a gateway: the listener, and which handler a call gets."""
