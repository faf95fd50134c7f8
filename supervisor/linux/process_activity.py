"""What a process and its descendants do, as /proc shows it: processor time used, processor time waited for, waits.

Read for workers only that do not finish what they began; the number of threads that are looked at is bounded.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mmsup.supervisor.linux.thread_wait import Wait, sockets_awaited, wait_of

PROCESSES_LIMIT: Final = 64
THREADS_LIMIT: Final = 256
POLLED_LIMIT: Final = 256
NS: Final = 1_000_000_000
_TICK_NS: Final = NS // os.sysconf("SC_CLK_TCK")
_OUTSIDE: Final = ("socket:", "/dev/nvidia")
"""Descriptors by which somebody else works for a process: a service, or a GPU."""
_POLLFD: Final = struct.Struct("ihh")


@dataclass(frozen=True, slots=True)
class ThreadActivity:
    state: str
    run_ns: int
    queued_ns: int
    """How long it has been ready to run while another had the processor."""
    wait: Wait = Wait.NOTHING_OUTSIDE


@dataclass(frozen=True, slots=True)
class ProcessActivity:
    """Monotonic time of the look, counters since the start of the process."""

    at_ns: int
    cpu_ns: int = 0
    """Of the process and its descendants, those included that have ended."""
    threads: tuple[tuple[int, ThreadActivity], ...] = ()
    """By thread id."""

    @property
    def waits_outside(self) -> bool:
        """Whether one of its threads waits for a disk or a socket."""
        return any(each.wait in (Wait.DISK, Wait.SOCKET) for _, each in self.threads)


def read_activity(pid: int, more: Iterable[int], since_ns: int) -> ProcessActivity:
    """The activity of a process, its descendants and `more` processes. A wait for a socket counts only in its main
    thread and in threads and processes that began after `since_ns` (monotonic): others may have waited for ever, as the
    threads of exporters and connection pools do."""
    now_ns = time.monotonic_ns()
    since_boot_ns = since_ns + time.clock_gettime_ns(time.CLOCK_BOOTTIME) - now_ns
    cpu_ns, threads = 0, dict[int, ThreadActivity]()
    for each in _family(pid, more):
        fields = _stat(f"/proc/{each}/stat")
        if not fields:
            continue
        cpu_ns += sum(int(ticks) for ticks in fields[11:15]) * _TICK_NS
        for tid in _numbers(f"/proc/{each}/task")[: THREADS_LIMIT - len(threads)]:
            found = _thread(each, tid, since_boot_ns, is_main=tid == pid)
            if found is not None:
                threads[tid] = found
    return ProcessActivity(now_ns, cpu_ns, tuple(threads.items()))


def queued_s(pid: int) -> float:
    """How long the main thread of a process has been ready to run, since its start, while others had the processors."""
    counted = _text(f"/proc/{pid}/schedstat").split()
    return int(counted[1]) / NS if len(counted) > 1 else 0.0


def _family(pid: int, more: Iterable[int]) -> list[int]:
    found = [pid, *(each for each in more if each != pid)][:PROCESSES_LIMIT]
    seen = set(found)
    for parent in found:  # grows meanwhile
        for tid in _numbers(f"/proc/{parent}/task")[:THREADS_LIMIT]:
            children = [int(each) for each in _text(f"/proc/{parent}/task/{tid}/children").split()]
            new = [each for each in children if each not in seen][: PROCESSES_LIMIT - len(found)]
            found += new
            seen.update(new)
    return found


def _thread(pid: int, tid: int, since_boot_ns: int, *, is_main: bool) -> ThreadActivity | None:
    folder = f"/proc/{pid}/task/{tid}"
    fields = _stat(f"{folder}/stat")
    if not fields:
        return None
    counted = _text(f"{folder}/schedstat").split()
    run_ns, queued_ns = (int(counted[0]), int(counted[1])) if len(counted) > 1 else (_ticks(fields), 0)
    state, wait = fields[0], Wait.NOTHING_OUTSIDE
    counts_sockets = is_main or int(fields[19]) * _TICK_NS >= since_boot_ns
    if state in "DTt" or (state == "S" and counts_sockets):
        # What /proc/PID shows is the same as below task/TID, which has no wchan on some kernels.
        path = folder if os.path.exists(f"{folder}/wchan") else f"/proc/{tid}"
        sockets = _sockets(pid, _text(f"{path}/syscall")) if state == "S" else None
        wait = wait_of(state, _text(f"{path}/wchan").strip(), sockets)
    return ThreadActivity(state, run_ns, queued_ns, wait)


def _sockets(pid: int, call: str) -> int | None:
    def is_socket(fd: int) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/fd/{fd}").startswith(_OUTSIDE)
        return False

    def polled(address: int, count: int) -> list[int]:
        size = min(count, POLLED_LIMIT) * _POLLFD.size
        with contextlib.suppress(OSError, ValueError, OverflowError), open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memory.seek(address)
            data = memory.read(size)
            return [fd for fd, _, _ in _POLLFD.iter_unpack(data[: len(data) // _POLLFD.size * _POLLFD.size])]
        return []

    def watched(fd: int) -> list[int]:
        lines = _text(f"/proc/{pid}/fdinfo/{fd}").splitlines()
        return [int(line.split()[1]) for line in lines if line.startswith("tfd:")]

    return sockets_awaited(call, is_socket, polled, watched)


def _ticks(fields: list[str]) -> int:
    return (int(fields[11]) + int(fields[12])) * _TICK_NS


def _stat(path: str) -> list[str]:
    """The fields after the name in brackets, which may contain brackets itself; state is the first. Empty if gone."""
    return _text(path).rpartition(")")[2].split()


def _numbers(folder: str) -> list[int]:
    with contextlib.suppress(OSError):
        return sorted(int(each) for each in os.listdir(folder) if each.isdigit())
    return []


def _text(path: str) -> str:
    try:
        with open(path, "rb", 0) as file:  # half the time of a text file: some hundred are read in a look
            return file.read().decode(errors="replace")
    except OSError:
        return ""
