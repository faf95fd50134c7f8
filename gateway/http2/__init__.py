"""HTTP/2 (RFC 9113) for servers of gRPC: frames, header blocks, streams, flow control, bounds. Knows no gRPC."""
