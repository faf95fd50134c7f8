"""Load whose payloads can be checked: HTTP client, protocol, payloads, load generator."""
