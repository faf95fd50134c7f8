"""The control socket's handlers and the gateways' requests to the controller."""
