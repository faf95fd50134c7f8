"""A child process as the controller sees it; backoff; usage."""
