"""Memory that clients share with the server: which regions there are, and how their bytes are read and written.

A gateway never maps a client's file: it copies by preadv and pwritev, so that a client that truncates its file gets an
error and no process a SIGBUS (docs/client-memory.md).
"""
