"""Whether a worker is worn out, so that a fresh one should take its place while it still serves. Pure.

    rss     its memory is above the model's `recycle_memory`, and has grown since it was ready
    files   most of the descriptors that it may have are open

A worker that was born above its limit does not leak: a fresh one would be no smaller. So it must have grown besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GROWTH: Final = 1.1
FILES_SHARE: Final = 0.75


@dataclass(frozen=True, slots=True)
class Reading:
    """What one worker holds. 0: not known, or not looked at."""

    memory_bytes: int = 0
    first_bytes: int = 0
    """When it was looked at for the first time."""
    files: int = 0
    files_limit: int = 0


def worn(reading: Reading, recycle_bytes: int | None) -> str:
    """`rss` or `files`; empty while it is good."""
    least_bytes = reading.first_bytes * GROWTH
    if recycle_bytes is not None and reading.memory_bytes > max(recycle_bytes, least_bytes):
        return "rss"
    if reading.files_limit and reading.files >= reading.files_limit * FILES_SHARE:
        return "files"
    return ""
