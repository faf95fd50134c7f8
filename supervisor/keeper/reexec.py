"""Re-execution of the keeper (as systemd's daemon-reexec): its state in sealed memory, and the exec itself.

The process stays the same: pid, children and descriptors, which KeeperState refers to by number, so the children notice
nothing. The record has a format of its own. A program that cannot read it fails in the preflight, while the program
that wrote it still runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.transport.dataclass_codec import WireError, record_decoder, to_plain
from mmsup.supervisor.keeper.children import Child
from mmsup.supervisor.keeper.dying_cgroups import DyingGroup

FORMAT: Final = 2
STATE: Final = "estate"
"""Name of the argument with the descriptor of the record; a running keeper starts the next program with it."""
_OWN_ARGUMENTS: Final = (f"{STATE}=", "settings=")


@dataclass(frozen=True, slots=True)
class KeeperState:
    """Everything that the next program of this process must know."""

    keeper_generation: int
    """Number of the program that writes this, from 1 on."""
    settings: str
    controller_generation: int
    """Number of controllers started so far."""
    checkpoint: dict[str, str]
    """What controllers saved for those after them, by key."""
    locks: tuple[int, ...]
    listeners: dict[str, int]
    addresses: dict[str, str]
    socket_paths: tuple[str, ...]
    """Files of the UNIX listeners."""
    lifeline: int
    lifeline_writer: int
    """Its other end, which no other process may hold."""
    counter_tables: tuple[int, ...]
    notify_address: str
    watchdog_s: float
    children: tuple[Child, ...]
    dying_groups: tuple[DyingGroup, ...]

    def descriptors(self) -> list[int]:
        """All that must stay open across the exec."""
        found = [*self.locks, *self.listeners.values(), self.lifeline, self.lifeline_writer, *self.counter_tables]
        for each in self.children:
            found += [*each.descriptors, *([each.exec_status] if each.exec_status is not None else [])]
        return found


def write(state: KeeperState) -> int:
    """The record in sealed memory; the descriptor is the caller's. OSError if there is no memory."""
    failpoint("keeper.estate")
    fd = os.memfd_create("mmsup-estate", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "w", encoding="utf-8", closefd=False) as file:
            json.dump([FORMAT, *to_plain(state)[1:]], file)
        failpoint("keeper.estate_seal")
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> KeeperState:
    """The record in this descriptor, which is closed; WireError if it has another format."""
    with open(fd, encoding="utf-8") as file:
        file.seek(0)
        raw: Any = json.load(file)  # ours, or another version's
    if not isinstance(raw, list) or raw[:1] != [FORMAT]:
        raise WireError(f"the running keeper's state is not of format {FORMAT}")
    state = record_decoder(KeeperState)(raw[1:])
    assert isinstance(state, KeeperState)
    return state


def command(*last: str) -> list[str]:
    """The command that started this process, with `last` in place of its own arguments."""
    return [sys.executable, *(each for each in sys.orig_argv[1:] if not each.startswith(_OWN_ARGUMENTS)), *last]


def exec_next(state: KeeperState) -> NoReturn:
    """Replace this program by the one on disk; OSError if that fails, and then nothing has changed."""
    fd = write(state)
    kept = [fd, *state.descriptors()]
    try:
        _set_inheritable(kept, inheritable=True)
        argv = command(f"{STATE}={fd}")
        sys.stderr.flush()
        failpoint("keeper.exec")
        os.execv(argv[0], argv)  # noqa: S606 - no shell is meant
    except OSError:
        _set_inheritable(kept, inheritable=False)
        os.close(fd)
        raise


def _set_inheritable(descriptors: list[int], *, inheritable: bool) -> None:
    for fd in descriptors:
        os.set_inheritable(fd, inheritable)
