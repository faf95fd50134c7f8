"""Which repositories can be read now: one that cannot takes none of its models along.

Covers: telling a folder that is empty from one whose file system is gone; one event when a repository is lost, one
when it is back. Does not cover: what lies in it (repository.py); what follows for its models (changes.py).
"""

from __future__ import annotations

from typing import Final

from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.repository.scanner import RepositoryScan

UNMOUNTED: Final = "is empty and lies on another file system than before, as if it were unmounted"


class RepositoryRoots:
    """The folders of all repositories, as they were when last read."""

    def __init__(self, journal: EventLog) -> None:
        self._journal = journal
        self._devices: dict[str, int] = {}
        self.unreadable: dict[str, str] = {}
        """Those that cannot be read now, and why."""

    def update(self, found: RepositoryScan) -> set[str]:
        """The repositories were read; those that are back."""
        lost = {fault.place: fault.text for fault in found.errors}
        for root, seen in found.roots.items():
            if not seen.folder_count and self._devices.get(root, seen.device) != seen.device:
                lost[root] = UNMOUNTED
            else:
                self._devices[root] = seen.device
        back = self.unreadable.keys() - lost.keys()
        for root in sorted(lost.keys() - self.unreadable.keys()):
            self._journal.record("repository_lost", f"{root}: {lost[root]}; its models stay as they are", root=root)
        for root in sorted(back):
            self._journal.record("repository_back", f"{root}: can be read again", root=root)
        self.unreadable = lost
        return set(back)
