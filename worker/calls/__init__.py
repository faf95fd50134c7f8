"""Calls of other models by the code of this one."""
