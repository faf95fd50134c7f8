"""Options, model keys, validation, units."""
