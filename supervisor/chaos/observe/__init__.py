"""History, events, deaths, leaks."""
