"""Model repositories on disk, scanned into specs and errors."""
