"""Status page: the progress of a process, in shared memory, readable without its cooperation and after its death.

One 4 KiB memfd per process, created and held by the keeper, written by the process's main loop, read by the controller
(all of them) and by gateways (those of their workers). Each field is one 8-byte store, so no reader sees half a value.

    u64 index    field
    0            activity        see Activity
    1            since_ns        monotonic time at which the activity started
    2            heartbeat_ns    monotonic time of the loop's last iteration
    3            batches         executed so far
    4            requests        executed so far
    5            device_bytes    memory that the engine uses on its device
    6            started         requests started so far
    7            refused         requests answered with `gpu_oom` so far: the device had no memory for them
    8            stepping        id of the stream whose next part is being made; 0: none, STEPPING_ALL: any of them
    9            sequences       that are live: they have a slot, or wait for one
    10           open_streams    how many they are
    16 ... 63    streams         ids of the streams that are open; 0: a free place
    64 ... 511   ring            ids of the requests that were started last; 0: none yet

After a worker's exit the ring is exact: a request in flight whose id is not in it was not started, or was answered. A
worker writes the id before it executes a request, and sends the replies of RING / 2 requests before it starts others;
replies to one gateway keep their order. So an id that was overwritten belongs to a reply on its way. (A result that
waits for a larger output buffer was announced: its gateway knows that it was executed.) The ids of a link start at a
random point of 2^62, so those of two links do not collide.

A stream answers its request many times (worker/streaming). It is in the ring like any other, and in the table of open
streams until its last reply, however many others were started since. What is being executed is the one whose step it
is, or all of them while the event loop of models that await runs.

Requests that were started and are not counted as executed are the current batch: their ids are the last in the ring. A
request counts as executed once its outputs have been read, so a crash on the way is attributed to it.

A worker can write anything here. A false page hurts only that worker: gateways check it against their own tables of
requests in flight.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

STATUS_PAGE_BYTES: Final = 4096
RING_INDEX: Final = 64
RING: Final = STATUS_PAGE_BYTES // 8 - RING_INDEX

ACTIVITY: Final = 0
SINCE: Final = 1
HEARTBEAT: Final = 2
BATCHES: Final = 3
REQUESTS: Final = 4
STARTED: Final = 6
_DEVICE, _REFUSED = 5, 7
SEQUENCES: Final = 9
_STEPPING, _OPEN_STREAMS = 8, 10
STREAMS_INDEX: Final = 16
STREAM_PLACES: Final = RING_INDEX - STREAMS_INDEX
STEPPING_ALL: Final = (1 << 64) - 1


class Activity(enum.IntEnum):
    STARTING = 0
    LOADING = 1
    WARMING = 2
    IDLE = 3
    BUSY = 4
    STOPPING = 5
    STANDBY = 6
    """A gateway that has no configuration yet."""
    LEFT = 7
    """A member of a co-location group that has given back what it held; its process goes on."""
    CALLING = 8
    """In a run that waits for another model, which it has called."""
    MOVING = 9
    """A model leaves the memory that it serves from, or comes back. No request runs."""


RUNNING: Final = frozenset({Activity.BUSY, Activity.CALLING})
"""In a run."""
IDLE: Final = int(Activity.IDLE)
BUSY: Final = int(Activity.BUSY)
"""As ints: storing a member of an enum takes longer."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The counters of a page at one time."""

    activity: Activity
    since_ns: int
    heartbeat_ns: int
    batches: int
    requests: int
    device_bytes: int
    refused: int = 0
    sequences: int = 0
    open_streams: int = 0


def make_status_page() -> int:
    """The descriptor of a new page, sealed so that no process can shrink it under its readers."""
    fd = os.memfd_create("mmsup-page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, STATUS_PAGE_BYTES)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class StatusPageWriter:
    """The page of this process. Who runs known requests writes the words itself, in the order of these methods: each
    call costs as much as several stores (worker/serving/known_runner.py)."""

    def __init__(self, fd: int) -> None:
        self.words = memoryview(mmap.mmap(fd, STATUS_PAGE_BYTES)).cast("Q")
        self.started = 0
        """As in the page."""

    def heartbeat(self, now_ns: int) -> None:
        self.words[HEARTBEAT] = now_ns

    def set_activity(self, activity: Activity, now_ns: int) -> None:
        """Start an activity. The time is written first: a reader may see the new time with the old activity, which
        only delays its judgement, never the reverse."""
        self.words[SINCE] = now_ns
        self.words[HEARTBEAT] = now_ns
        self.words[ACTIVITY] = activity

    def idle(self, now_ns: int) -> None:
        """The same for IDLE."""
        words = self.words
        words[SINCE] = now_ns
        words[HEARTBEAT] = now_ns
        words[ACTIVITY] = IDLE

    def request_started(self, request: int) -> None:
        self.words[RING_INDEX + self.started % RING] = request
        self.started += 1
        self.words[STARTED] = self.started

    def batch_started(self, requests: Iterable[int], now_ns: int) -> None:
        """These requests are about to be executed together."""
        for request in requests:
            self.request_started(request)
        self.set_activity(Activity.BUSY, now_ns)

    def calling(self, now_ns: int) -> int:
        """The run waits for another model from now on. Returns the time by which it counts as begun."""
        since_ns = self.words[SINCE]
        self.set_activity(Activity.CALLING, now_ns)
        return since_ns

    def called(self, since_ns: int, now_ns: int) -> None:
        """The run goes on, as if it had begun then: what it has waited for others is not its own time."""
        self.words[SINCE] = since_ns
        self.words[HEARTBEAT] = now_ns
        self.words[ACTIVITY] = BUSY

    def executing(self) -> frozenset[int]:
        """Ids of the requests of the current batch, of all gateways."""
        begun = self.started
        return frozenset([self.words[RING_INDEX + each % RING] for each in range(self.words[REQUESTS], begun)])

    def batch_executed(self, requests: int) -> None:
        self.words[BATCHES] += 1
        self.words[REQUESTS] += requests

    def set_stream(self, place: int, request: int) -> None:
        """A stream is open in that place; 0: it is closed."""
        self.words[STREAMS_INDEX + place] = request
        self.words[_OPEN_STREAMS] += 1 if request else -1

    def step(self, request: int, now_ns: int) -> None:
        """The next part of this stream is about to be made; STEPPING_ALL: of any."""
        self.words[_STEPPING] = request
        self.set_activity(Activity.BUSY, now_ns)

    def stepped(self, now_ns: int) -> None:
        """It is made; what follows is no run of the model."""
        self.words[_STEPPING] = 0
        self.idle(now_ns)

    def request_refused(self) -> None:
        """One request was answered with `gpu_oom`."""
        self.words[_REFUSED] += 1

    def set_device_bytes(self, size_bytes: int) -> None:
        self.words[_DEVICE] = size_bytes


class StatusPageReader:
    """The page of another process."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, STATUS_PAGE_BYTES, prot=mmap.PROT_READ)
        self._words = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap the page; the mapping holds a descriptor of its own."""
        self._words.release()
        self._map.close()

    def read(self) -> Progress:
        """The current counters. An unknown activity reads as BUSY, so that the hang limit applies to it."""
        words = self._words
        raw = words[ACTIVITY]
        activity = Activity(raw) if raw <= Activity.MOVING else Activity.BUSY
        counts = (
            words[BATCHES],
            words[REQUESTS],
            words[_DEVICE],
            words[_REFUSED],
            words[SEQUENCES],
            words[_OPEN_STREAMS],
        )
        return Progress(activity, words[SINCE], words[HEARTBEAT], *counts)

    def sequences(self) -> int:
        """How many are live."""
        return int(self._words[SEQUENCES])

    def started(self) -> frozenset[int]:
        """Ids of the requests that were started last, of all gateways."""
        return frozenset(self._words[STREAMS_INDEX:]) - {0}

    def executing(self) -> frozenset[int]:
        """Ids of the requests of the current batch, of all gateways; empty between two batches."""
        executed, begun = self._words[REQUESTS], self._words[STARTED]
        if stepping := self._words[_STEPPING]:
            is_one = stepping != STEPPING_ALL
            return frozenset((stepping,)) if is_one else frozenset(self._words[STREAMS_INDEX:RING_INDEX]) - {0}
        if not executed < begun <= executed + RING:
            return frozenset()
        return frozenset([self._words[RING_INDEX + each % RING] for each in range(executed, begun)])
