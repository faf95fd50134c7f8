"""Watches a run: history, events of the server, worker deaths, leaked resources."""
