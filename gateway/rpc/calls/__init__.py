"""One gRPC call on an HTTP/2 stream: its messages, its status, what all of them may hold."""
