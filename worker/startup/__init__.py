"""Everything before WorkerReady: limits, environment, control channel, warm-up."""
