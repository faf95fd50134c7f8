"""What a keeper hands to the program that follows it in its own process: one record in sealed memory.

The process stays: its pid, its children, its descriptors, which the record names by number. So the children do not
notice. The record has a format of its own; a program that cannot read it says so in its rehearsal, while the one that
wrote it still runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildDescriptors, ChildExited
from mmsup.ipc.transport.dataclass_codec import WireError, record_decoder, to_plain

FORMAT: Final = 1
STATE: Final = "estate"
"""Name of the argument that names the record."""
_OWN_ARGUMENTS: Final = (f"{STATE}=", "settings=")


@dataclass(frozen=True, slots=True)
class KeptChild:
    """One child: the fields of charge.py."""

    message: ChildDescriptors
    descriptors: tuple[int, ...]
    procs_files: tuple[str, ...]
    exec_status: int | None
    is_announced: bool
    exited: ChildExited | None


@dataclass(frozen=True, slots=True)
class KeptGroup:
    """The control group of a dead child that may not be empty."""

    folders: tuple[str, ...]
    until_s: float


@dataclass(frozen=True, slots=True)
class KeeperState:
    """All that a keeper holds."""

    keeper_generation: int
    """Which program of this process writes, from 1 on."""
    settings: str
    controller_generation: int
    """How many there were."""
    checkpoint: str
    locks: tuple[int, ...]
    listeners: dict[str, int]
    addresses: dict[str, str]
    socket_paths: tuple[str, ...]
    """Files of the UNIX listeners."""
    lifeline: int
    lifeline_writer: int
    """The end of the lifeline that nobody else holds."""
    counter_tables: tuple[int, ...]
    notify_address: str
    watchdog_s: float
    children: tuple[KeptChild, ...]
    dying_groups: tuple[KeptGroup, ...]

    def descriptors(self) -> list[int]:
        """All that must stay open across the exec."""
        found = [*self.locks, *self.listeners.values(), self.lifeline, self.lifeline_writer, *self.counter_tables]
        for each in self.children:
            found += [*each.descriptors, *([each.exec_status] if each.exec_status is not None else [])]
        return found


def write(estate: KeeperState) -> int:
    """The record in sealed memory; the descriptor is the caller's. OSError: there is none."""
    failpoint("keeper.estate")
    fd = os.memfd_create("mmsup-estate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            json.dump([FORMAT, *to_plain(estate)[1:]], file)
        failpoint("keeper.estate_seal")
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> KeeperState:
    """The record of that descriptor, which is closed; WireError if it is of another format."""
    with open(fd, encoding="utf-8") as file:
        file.seek(0)
        raw: Any = json.load(file)  # ours, or another version's
    if not isinstance(raw, list) or raw[:1] != [FORMAT]:
        raise WireError(f"what the running keeper hands over is not of format {FORMAT}")
    made = record_decoder(KeeperState)(raw[1:])
    assert isinstance(made, KeeperState)
    return made


def command(*last: str) -> list[str]:
    """How this process was started, but with other arguments at the end."""
    return [sys.executable, *(each for each in sys.orig_argv[1:] if not each.startswith(_OWN_ARGUMENTS)), *last]


def exec_next(estate: KeeperState) -> NoReturn:
    """Replace this program by the one that lies on disk now; OSError if that cannot be, and nothing has changed."""
    fd = write(estate)
    given = [fd, *estate.descriptors()]
    try:
        _set_inheritable(given, inheritable=True)
        argv = command(f"{STATE}={fd}")
        sys.stderr.flush()
        failpoint("keeper.exec")
        os.execv(argv[0], argv)  # noqa: S606 - no shell is meant
    except OSError:
        _set_inheritable(given, inheritable=False)
        os.close(fd)
        raise


def _set_inheritable(descriptors: list[int], *, inheritable: bool) -> None:
    for fd in descriptors:
        os.set_inheritable(fd, inheritable)
