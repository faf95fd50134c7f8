"""Every message, one file per channel."""
