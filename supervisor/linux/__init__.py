"""Interfaces of Linux: control groups, OOM events, /proc, signals, UNIX sockets, systemd. Standard library only."""
