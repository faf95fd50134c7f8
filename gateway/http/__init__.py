"""HTTP vocabulary: routes, request, body, response, error status."""
