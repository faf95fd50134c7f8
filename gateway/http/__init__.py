"""HTTP: URL routes, request, body, response, status of each error."""
