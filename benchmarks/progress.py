"""Prints progress to stderr."""

from __future__ import annotations

import sys


def log_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
