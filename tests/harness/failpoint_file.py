"""The shared file that arms failpoints: orders one failure, tells whether it has happened, and counts hits."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmsup.ipc.failpoints import (
    ANY_POINT,
    ANY_ROLE,
    CONTROL_PAGE_BYTES,
    HITS_AT,
    MAGIC,
    NAMES,
    POINTS,
    ROLES,
    SUBJECT_AT,
    SUBJECT_BYTES,
    WORD_ACTION,
    WORD_FIRED,
    WORD_HITS_LEFT,
    WORD_MAGIC,
    WORD_POINT,
    WORD_ROLE,
    WORD_WAIT,
    FailpointAction,
)

DELAY_MS = 200


@dataclass(frozen=True, order=True)
class FailpointSite:
    """A failpoint in one kind of process."""

    role: str
    name: str

    @property
    def can_raise(self) -> bool:
        return POINTS[self.name].error != 0

    def __str__(self) -> str:
        return self.name if self.name.startswith(self.role) else f"{self.name} in {self.role}"


def all_sites() -> Iterator[FailpointSite]:
    """Every failpoint in every role that has it."""
    for name, point in POINTS.items():
        for role in point.roles or (name.partition(".")[0],):
            yield FailpointSite(role, name)


class FailpointFile:
    """One file, mapped by the test and by every process of the server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(fd, CONTROL_PAGE_BYTES)
        self._words = memoryview(mmap.mmap(fd, CONTROL_PAGE_BYTES)).cast("Q")
        os.close(fd)
        self._words[WORD_MAGIC] = MAGIC

    def order(self, what: FailpointAction, spot: FailpointSite | None = None, nth: int = 1, subject: str = "") -> None:
        """Let the nth hit from now on fail; of any failpoint in any role without `spot`."""
        words = self._words
        words[WORD_ACTION] = FailpointAction.OFF
        words[WORD_ROLE] = ROLES.index(spot.role) if spot else ANY_ROLE
        words[WORD_POINT] = NAMES.index(spot.name) if spot else ANY_POINT
        words[WORD_HITS_LEFT], words[WORD_FIRED], words[WORD_WAIT] = nth, 0, DELAY_MS
        text = subject.encode().ljust(SUBJECT_BYTES, b"\0")
        for word in range(SUBJECT_BYTES // 8):
            words[SUBJECT_AT + word] = int.from_bytes(text[word * 8 : word * 8 + 8], "little")
        words[WORD_ACTION] = what

    def disarm(self) -> bool:
        """Cancel the order. Returns whether the failure has happened."""
        self._words[WORD_ACTION] = FailpointAction.OFF
        return self.fired

    @property
    def fired(self) -> bool:
        """Whether the ordered failure has happened."""
        return bool(self._words[WORD_FIRED])

    def hits(self) -> dict[FailpointSite, int]:
        """The number of hits of each failpoint since the file was made."""
        return {
            each: self._words[HITS_AT + ROLES.index(each.role) * len(NAMES) + NAMES.index(each.name)]
            for each in all_sites()
        }
