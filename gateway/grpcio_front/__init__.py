"""The gRPC front process: takes calls by the grpcio library, and hands them to gateways."""
