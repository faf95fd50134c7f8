"""Every endpoint but inference."""
