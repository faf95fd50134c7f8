"""Control groups, OOM events, /proc, UNIX sockets, systemd."""
