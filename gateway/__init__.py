"""The HTTP face of the server, owner of the ledger of requests in flight."""
