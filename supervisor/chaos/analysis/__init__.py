"""Checker, timeline, statistics, report."""
