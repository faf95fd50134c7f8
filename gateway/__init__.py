"""The HTTP gateway process: owns the shared memory and the requests in flight at workers."""
