"""A process that has imported an engine, and of which workers are forked in milliseconds."""
