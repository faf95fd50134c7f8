"""The HTTP API except inference."""
