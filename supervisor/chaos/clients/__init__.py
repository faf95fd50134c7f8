"""Open-loop load whose payloads can be checked."""
