"""An append-only text file of bounded size: `NAME`, renamed to `NAME.1` when it is full.

Lines that a full or broken disk refuses are lost and counted; writing never raises.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mmsup.ipc.failpoints import failpoint

LIMIT_BYTES: Final = 4 << 20


class RotatingFile:
    """One file and its predecessor, together at most twice the limit."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self.lost_writes = 0
        """Writes that failed, or wrote only a part."""
        self._limit = limit_bytes
        self._fd = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        try:
            failpoint("brain.book")
            if self._fd >= 0 and self._size + len(data) > self._limit:
                self.close()
                self.path.replace(self.previous_path())
            if self._fd < 0:
                self._open()
            written = os.write(self._fd, data)
            self._size += written
            self.lost_writes += written < len(data)
        except OSError:
            self.lost_writes += 1

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def previous_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.1")

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._fd).st_size
