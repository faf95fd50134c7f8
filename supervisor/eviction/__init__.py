"""Which models give their memory back when it is needed: by budget for a load, or because the machine runs short."""
