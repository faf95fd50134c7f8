"""The status page: what a process says of its own progress, read without its help.

One anonymous 4 KiB memory per process, made and kept by the keeper, written by the loop that does the work,
read by the brain (all) and by gateways (their workers'). One 8-byte store a field, so no reader sees half a value.

    u64 index   field
    0           activity       see Activity
    1           since_ns       monotonic time at which the activity began
    2           beat_ns        monotonic time of the loop's last turn
    3           batches        executed so far
    4           requests       executed so far
    5           device_bytes   memory the engine holds on its device
    6           begun          requests that have begun so far
    7           refused        requests answered so far with `gpu_oom`: the device had no memory for them
    64 … 511    begun          ids of the requests that began to execute last, a ring; 0: none yet

The ring is exact for whoever lost its worker: what is not in it did not begin, or was answered. A worker writes an id
before its run, and answers RING / 2 requests before it begins others; the answers to one gateway keep their order. So
an id that was pushed out belongs to an answer that is on its way. (A result that waits for a larger grant was asked
for: the gateway knows that it ran.) Ids of a link begin at a random point of 2^62, so those of two do not meet.

Those that began and are not counted as executed are the run that is going on: its ids are the last of the ring. A
request counts as executed when its outputs have been read, so that a death on the way belongs to it.

It is the process's own word. A lie can hurt only the one who lies: the gateways' ledger is the second witness.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Final

STATUS_PAGE_BYTES: Final = 4096
RING_INDEX: Final = 64
RING: Final = STATUS_PAGE_BYTES // 8 - RING_INDEX

_ACTIVITY, _SINCE, _HEARTBEAT, _BATCHES, _REQUESTS, _DEVICE, _STARTED, _REFUSED = range(8)


class Activity(enum.IntEnum):
    """What the loop is doing now."""

    STARTING = 0
    LOADING = 1
    WARMING = 2
    IDLE = 3
    BUSY = 4
    STOPPING = 5
    STANDBY = 6
    """A gateway that nobody has told to serve."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading of a page."""

    activity: Activity
    since_ns: int
    heartbeat_ns: int
    batches: int
    requests: int
    device_bytes: int
    refused: int = 0


def make_status_page() -> int:
    """A new page's descriptor; nobody can shrink it under its readers."""
    fd = os.memfd_create("mmsup-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, STATUS_PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class StatusPageWriter:
    """The owner's side of a page."""

    def __init__(self, fd: int) -> None:
        self._words = memoryview(mmap.mmap(fd, STATUS_PAGE_BYTES)).cast("Q")
        self._started = 0

    def heartbeat(self, now_ns: int) -> None:
        """The loop came round."""
        self._words[_HEARTBEAT] = now_ns

    def set_activity(self, activity: Activity, now_ns: int) -> None:
        """The loop begins something else. The time is written first: a reader may see new time with old activity,
        which makes it patient, never the reverse."""
        self._words[_SINCE] = now_ns
        self._words[_HEARTBEAT] = now_ns
        self._words[_ACTIVITY] = activity

    def request_started(self, request: int) -> None:
        """A request is about to execute."""
        self._words[RING_INDEX + self._started % RING] = request
        self._started += 1
        self._words[_STARTED] = self._started

    def batch_executed(self, requests: int) -> None:
        """One batch is through."""
        self._words[_BATCHES] += 1
        self._words[_REQUESTS] += requests

    def request_refused(self) -> None:
        """One request was answered with `gpu_oom`."""
        self._words[_REFUSED] += 1

    def set_device_bytes(self, size_bytes: int) -> None:
        """The engine's device memory, as it reports it."""
        self._words[_DEVICE] = size_bytes


class StatusPageReader:
    """Anyone else's side of a page."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, STATUS_PAGE_BYTES, prot=mmap.PROT_READ)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap it; the mapping holds a descriptor of its own."""
        self._words.release()
        self._map.close()

    def read(self) -> Progress:
        """The page now; an activity that no version of us knows reads as BUSY, so that its clock runs."""
        words = self._words
        raw = words[_ACTIVITY]
        activity = Activity(raw) if raw <= Activity.STANDBY else Activity.BUSY
        counts = words[_BATCHES], words[_REQUESTS], words[_DEVICE], words[_REFUSED]
        return Progress(activity, words[_SINCE], words[_HEARTBEAT], *counts)

    def started(self) -> frozenset[int]:
        """Ids of the requests that began to execute last, of all gateways."""
        return frozenset(self._words[RING_INDEX:]) - {0}

    def executing(self) -> frozenset[int]:
        """Ids of the requests of the run that is going on, of all gateways; none between two runs."""
        executed, begun = self._words[_REQUESTS], self._words[_STARTED]
        if not executed < begun <= executed + RING:
            return frozenset()
        return frozenset([self._words[RING_INDEX + each % RING] for each in range(executed, begun)])
