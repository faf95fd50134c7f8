"""What clients of the same machine may set while the server runs: log lines, and what is to be traced."""
