"""Keeper, brain and command line."""
