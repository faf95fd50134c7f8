"""All processes that this one has started, however they have detached themselves, and the CPU time they have used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
CLEANUP_S = 3.0
"""For what the first process leaves behind: a tracker that unlinks semaphores, say."""
_TICKS = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Become the parent of every process whose own parent has left: nothing started below us escapes the count."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_as_exception() -> None:
    """Let SIGTERM end us as Ctrl-C does: with what we have started."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@dataclass(frozen=True)
class ProcessCpu:
    """CPU seconds of a process with those of its children that were waited for: it only grows."""

    name: str
    user_s: float
    system_s: float


def descendants(besides: frozenset[int] = frozenset()) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, for every living process below this one."""
    found: dict[int, list[str]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            found[int(entry)] = text[text.rindex(")") + 2 :].split()
    below = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, fields in found.items() if int(fields[1]) in below} - below - besides
        below |= more
        grown = bool(more)
    return {pid: found[pid] for pid in below - {os.getpid()} if pid in found}


def cpu(besides: frozenset[int] = frozenset()) -> dict[int, ProcessCpu]:
    """The CPU time of each of them."""
    used = {}
    for pid, fields in descendants(besides).items():
        user, system, waited_user, waited_system = (int(each) for each in fields[11:15])
        used[pid] = ProcessCpu(_name(pid), (user + waited_user) / _TICKS, (system + waited_system) / _TICKS)
    return used


def _name(pid: int) -> str:
    """What a person would call it: the module or script that an interpreter runs, else the program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    name = Path(words[0]).name
    if not name.startswith("python"):
        return name.split(":")[-1].strip() or "kernel"
    for word, following in zip(words[1:], [*words[2:], ""], strict=False):
        if word == "-m":
            return following.rpartition("mmsup.")[2]
        if word == "-c":
            return following.split("import ")[-1].split(";")[0].split("(")[0].strip()[:24] or "python"
        if not word.startswith("-"):
            return Path(word).name
    return name


def stop(pid: int, patience_s: float) -> None:
    """SIGTERM to one, patience with it and then with the rest, then SIGKILL to whatever is still below us."""
    _send(pid, signal.SIGTERM)
    limit = time.monotonic() + patience_s
    while _reap(pid) and time.monotonic() < limit:
        time.sleep(0.02)
    limit = time.monotonic() + CLEANUP_S
    while [each for each in descendants() if _reap(each)] and time.monotonic() < limit:
        time.sleep(0.02)
    limit = time.monotonic() + 20
    while left := descendants():
        for each in left:
            _send(each, signal.SIGKILL)
        for each in left:
            _reap(each)
        if time.monotonic() > limit:
            raise RuntimeError(f"processes {sorted(left)} do not end")
        time.sleep(0.02)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return Path(f"/proc/{pid}").exists()
