"""Client connections: accepting them, their limits, and the two ways to serve them."""
