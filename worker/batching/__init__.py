"""Which requests run together, and when. Pure."""
