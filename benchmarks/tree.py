"""All descendants of this process, even if they have detached themselves, and their CPU time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
CLEANUP_S = 3.0
"""How long other processes may take to exit after the first, a resource tracker for instance."""
_TICKS = os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """Become the subreaper of all descendants, so that none is missed."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_as_exception() -> None:
    """Let SIGTERM raise SystemExit, so that started processes are stopped."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


@dataclass(frozen=True)
class ProcessCpu:
    """CPU seconds of a process and its reaped children: monotonic."""

    name: str
    user_s: float
    system_s: float


def descendants(besides: frozenset[int] = frozenset()) -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, for every descendant."""
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
    """CPU time of every descendant."""
    used = {}
    for pid, fields in descendants(besides).items():
        user, system, waited_user, waited_system = (int(each) for each in fields[11:15])
        used[pid] = ProcessCpu(name(pid), (user + waited_user) / _TICKS, (system + waited_system) / _TICKS)
    return used


def used_s(before: Mapping[int, ProcessCpu], after: Mapping[int, ProcessCpu]) -> float:
    """CPU seconds that the processes of `after` have used since `before`."""
    return sum(_total_s(now) - _total_s(before.get(pid)) for pid, now in after.items())


def _total_s(process: ProcessCpu | None) -> float:
    return process.user_s + process.system_s if process else 0.0


def name(pid: int) -> str:
    """The module or script that an interpreter runs, else the program."""
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
    """SIGTERM to one process, wait for it and then for the rest, then SIGKILL to all descendants."""
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
