"""Processes of which workers are forked: which there should be, one of them, and how a worker is started."""
