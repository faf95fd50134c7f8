"""What the HTTP API says of itself: the OpenAPI description, and the page at `/`."""
