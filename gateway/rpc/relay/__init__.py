"""Calls that the gRPC front process hands to this gateway (ipc/relay_frames.py)."""
