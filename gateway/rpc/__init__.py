"""gRPC: calls over HTTP/2 streams, the inference service, health and reflection."""
