"""Standard output and error of the workers of one model: the last 64 KiB in memory, more in a rotating file.

A model that prints endlessly fills a bounded file and delays nothing: pipes are read without blocking, and lines that
the disk refuses are lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mmsup.supervisor.observability.rotating_file import RotatingFile

TAIL_BYTES: Final = 64 << 10
LAST_LINES: Final = 100
LAST_CHARACTERS: Final = 2000
"""Kept of each worker, and of each line, for the crash report."""
LINE_BYTES: Final = 16 << 10
"""A longer line is cut."""
GATEWAY_OUTPUT: Final = "_gateways"
"""Stands for the gateways in place of a model's name, which never starts with an underscore."""
ZYGOTE_OUTPUT: Final = "_zygotes"


class ModelOutput:
    """The output of one model, in the order in which its workers printed it."""

    def __init__(self, path: Path) -> None:
        self._file = RotatingFile(path)
        self._tail = bytearray()
        self._partial: dict[str, bytes] = {}
        self._last: dict[str, deque[str]] = {}
        self._listeners: set[Callable[[str], None]] = set()
        for each in (self._file.previous_path(), path):
            self._append_tail(_read_tail(each))

    def append(self, worker: str, data: bytes) -> None:
        """Add what one worker has printed. Lines of several workers are not mixed."""
        lines = (self._partial.pop(worker, b"") + data).split(b"\n")
        if len(lines[-1]) > LINE_BYTES:
            lines.append(b"")
        if lines[-1]:
            self._partial[worker] = lines[-1]
        self._write(worker, lines[:-1])

    def finish(self, worker: str) -> list[str]:
        """After a worker's exit: add its last, unterminated line. Returns the last lines of this worker."""
        rest = self._partial.pop(worker, b"")
        if rest:
            self._write(worker, [rest])
        last = list(self._last.pop(worker, ()))
        if not self._last:
            self._file.close()  # a model without workers holds no descriptor
        return last

    def last_lines(self, count: int) -> list[str]:
        """The last `count` lines of all workers, oldest first."""
        known = _text(bytes(self._tail)).splitlines()
        return known[-count:] if count > 0 else []

    def subscribe(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` with each new line, until the returned function is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def close(self) -> None:
        self._file.close()

    def _write(self, worker: str, lines: list[bytes]) -> None:
        if not lines:
            return
        last = self._last.setdefault(worker, deque(maxlen=LAST_LINES))
        last.extend(_text(line[:LAST_CHARACTERS]) for line in lines[-LAST_LINES:])
        data = b"".join(line + b"\n" for line in lines)
        self._file.write(data)
        self._append_tail(data)
        for listener in tuple(self._listeners):
            for line in lines:
                listener(_text(line))

    def _append_tail(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-TAIL_BYTES]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _read_tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read(TAIL_BYTES)
    except OSError:
        return b""
