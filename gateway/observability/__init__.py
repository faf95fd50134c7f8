"""Counters, statistics, /metrics."""
