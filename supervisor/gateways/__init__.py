"""The gateway processes as the controller runs them."""
