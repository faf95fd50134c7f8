"""A process that SIGKILL does not end, as in uninterruptible sleep: held in a frozen control group (v1).

It dies of the signal as soon as it is thawed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.server import eventually

FREEZER = Path("/sys/fs/cgroup/freezer")
needs_freezer = pytest.mark.skipif(
    not (FREEZER / "cgroup.procs").exists() or not os.access(FREEZER, os.W_OK),
    reason="there is no cgroup v1 freezer that can be written",
)


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[Thaw]:
    """Freeze a process, at most until the end of the block."""
    folder = FREEZER / f"mmsup_test_{os.getpid()}_{pid}"
    folder.mkdir()
    thaw = Thaw(folder)
    try:
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "freezer.state").write_text("FROZEN")
        eventually(lambda: (folder / "freezer.state").read_text() == "FROZEN\n", f"{pid} is frozen")
        yield thaw
    finally:
        thaw()
        eventually(thaw.is_empty, "what was frozen has left")
        folder.rmdir()


class Thaw:
    """Thaws the frozen process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self) -> None:
        (self._folder / "freezer.state").write_text("THAWED")

    def is_empty(self) -> bool:
        """Whether the process has left the group."""
        return not (self._folder / "cgroup.procs").read_text()
