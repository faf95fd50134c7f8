"""Routing of requests to workers: admission, links, requests in flight, retries when a worker exits."""
