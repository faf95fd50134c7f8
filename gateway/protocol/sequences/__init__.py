"""What the parameters of a request say of its sequence."""
