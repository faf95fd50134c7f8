"""What gateways and the gRPC front process share: keepalive, header blocks, the frames between them."""
