"""Which faults, when, to whom. Pure."""
