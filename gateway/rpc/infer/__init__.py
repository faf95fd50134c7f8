"""ModelInfer and ModelStreamInfer: a message is a request like one of HTTP, and its reply a message."""
