"""Progress is no result: it goes to stderr."""

from __future__ import annotations

import sys


def log_progress(text: str) -> None:
    """One line, at once."""
    print(text, file=sys.stderr, flush=True)
