"""A model repository on disk, read into specs."""
