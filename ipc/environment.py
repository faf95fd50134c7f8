"""Environment variables by which one process of a server tells another something; nobody else sets them."""

from __future__ import annotations

from typing import Final

SOFT_FILES: Final = "MMSUP_SOFT_FILES"
"""The soft limit of open files with which the server was started. Workers get it back: code that calls select() cannot
use a number above 1023. Read and removed in worker/startup/resource_limits.py."""
