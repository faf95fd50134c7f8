"""Control groups of exited children, which are killed again until no process is left in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mmsup.supervisor.linux import cgroup

CLEANUP_LIMIT_S: Final = 5.0
"""After this time a group is given up: a process in an unkillable state (D) may never leave it."""


@dataclass(frozen=True, slots=True)
class DyingGroup:
    """The control group of one exited child: one folder with cgroup v2, one in each hierarchy with v1."""

    folders: tuple[str, ...]
    until_s: float

    def kill(self) -> bool:
        """Whether it is empty; if it is not, its processes were sent SIGKILL."""
        return cgroup.kill([Path(each) for each in self.folders])


class DyingGroups:
    """All of them; `kill_again` is due every few milliseconds while there are any."""

    def __init__(self) -> None:
        self.groups: list[DyingGroup] = []

    def kill(self, procs_files: Sequence[str]) -> None:
        """Kill the group with these `cgroup.procs` files, and remember it until it is empty."""
        folders = tuple(str(Path(each).parent) for each in procs_files)
        group = DyingGroup(folders, time.monotonic() + CLEANUP_LIMIT_S)
        if not group.kill():
            self.groups.append(group)

    def kill_again(self) -> None:
        now_s = time.monotonic()
        self.groups = [each for each in self.groups if now_s < each.until_s and not each.kill()]
