"""One model instance in one process."""
