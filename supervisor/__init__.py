"""Keeper, controller and command line."""
