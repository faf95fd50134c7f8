"""Everything before READY: limits, environment, control channel, warm-up."""
