"""Memory that several processes map."""
