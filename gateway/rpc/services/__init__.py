"""The methods that answer one message with one, health and reflection."""
