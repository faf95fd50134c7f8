"""Request counters, the statistics extension and /metrics."""
