"""The worker's one loop: hear, run, answer.

One thread, one poll over four kinds of descriptors: ZeroMQ's (requests), the control channel (Attach, Stop), a socket
pair for each gateway (extents, its end), the lifeline. Each turn hears everything that has come, runs from the head of
the queue, and answers each gateway in one frame. Nothing here waits for anyone but in `poll`.

ZeroMQ's descriptor is edge-triggered, and sending consumes edges too: the loop goes to sleep only after it has
received until dry with nothing sent since.

The status page says what this loop does, from this loop: BUSY since the start of the run, IDLE with a beat.
"""

from __future__ import annotations

import gc
import logging
import select
import time
from typing import Final

from mmsup.ipc.channel import WorkerEnd
from mmsup.ipc.codec import decode, unpack_frame
from mmsup.ipc.messages import TO_WORKER, Attach, Stop
from mmsup.ipc.page import Activity, PageWriter
from mmsup.ipc.records import WireError
from mmsup.ipc.seqpacket import Closed, close_all
from mmsup.worker.batch import RUN_REQUESTS
from mmsup.worker.boot import Control, orphaned
from mmsup.worker.desk import Desk
from mmsup.worker.execute import Execution
from mmsup.worker.links import Links
from mmsup.worker.outbox import Outbox

log = logging.getLogger("mmsup.worker")

BEAT_S: Final = 0.5
"""Longest sleep of an idle loop; a quarter of the model's hang limit where that is shorter."""
RETRY_S: Final = 0.01
"""Sleep while a gateway does not take its replies, which ZeroMQ does not report."""
SELECT_LIMIT: Final = 1024
"""Descriptors from here on are too high for `select`."""
COLLECT_EVERY: Final = 256
"""Batches between two collections of young garbage; the collector does not run by itself, in the middle of one."""


class Loop:
    """Everything between Ready and the end. `run` returns after Stop, when all that was asked is answered."""

    def __init__(self, control: Control, end: WorkerEnd, execution: Execution, page: PageWriter) -> None:
        self._control = control
        self._end = end
        self._execution = execution
        self._page = page
        self._poller = select.poll()
        self._links = Links(self._poller)
        self._outbox = Outbox(end)
        self._desk = Desk(execution, page, self._links, self._outbox)
        self._beat_s = min(BEAT_S, execution.spec.hang_limit_s / 4)
        self._strays = 0
        """Frames and records that nobody may have sent: of unknown gateways, of no known form."""
        self._stopping = False
        self._poller.register(control.channel.fileno(), select.POLLIN)
        self._poller.register(end.fileno(), select.POLLIN)
        self._poller.register(control.lifeline, 0)  # only its end is of interest

    def run(self) -> None:
        """Serve until Stop."""
        self._page.enter(Activity.IDLE, time.monotonic_ns())
        while True:
            self._hear()
            if self._desk.waiting:
                self._look(0)
                self._serve()
            elif self._stopping and not self._desk.kept and not self._outbox:
                return
            else:
                self._rest()

    # Sleeping, and what the descriptors say.

    def _rest(self) -> None:
        if not self._look(RETRY_S if self._outbox else self._beat_s):
            self._tidy(generation=2)
        now = time.monotonic_ns()
        self._page.turn(now)
        self._desk.expire(now)
        self._flush()

    def _look(self, timeout_s: float) -> bool:
        """Do what the descriptors other than ZeroMQ's say; whether anything at all had come."""
        events = self._poller.poll(timeout_s * 1000)
        for fd, _ in events:
            if fd == self._control.lifeline:
                orphaned()
            elif fd == self._control.channel.fileno():
                self._obey()
            elif self._links.knows(fd):
                gone = self._links.read(fd)
                if gone is not None:
                    self._desk.forget(gone.identity)
        return bool(events)

    def _obey(self) -> None:
        """Do what the brain says."""
        try:
            while (received := self._control.channel.receive()) is not None:
                data, descriptors = received
                match decode(data, TO_WORKER):
                    case Attach() as attach if len(descriptors) == 1:
                        self._links.attach(attach, descriptors.pop())
                    case Stop():
                        self._stopping = True
                    case other:
                        log.warning("a %s with %d descriptors is not for now", type(other).__name__, len(descriptors))
                close_all(descriptors)
        except Closed:
            orphaned()

    # Hearing and answering.

    def _hear(self) -> bool:
        """Take every frame that has come, until dry; whether there was any."""
        heard = False
        while (received := self._end.receive()) is not None:
            heard = True
            identity, frame = received
            link = self._links.get(identity)
            if link is None:
                self._obey()  # the brain attaches a gateway before that gateway speaks, but on another channel
                link = self._links.get(identity)
            if link is None:
                self._stray("a frame of a gateway that is not attached")
                continue
            now = time.monotonic_ns()
            try:
                for record in unpack_frame(frame):
                    if not self._desk.take_in(link, record, now):
                        self._stray(f"a {type(record).__name__} that is not for a worker, or doubled")
            except WireError as error:
                self._stray(f"a frame that is none: {error}")
        return heard

    def _stray(self, what: str) -> None:
        self._strays += 1
        if self._strays & (self._strays - 1) == 0:  # at 1, 2, 4, …: a flood fills no log
            log.warning("ignored %s (%d such so far)", what, self._strays)

    def _serve(self) -> None:
        """Run what is next as long as the runs are quick, then answer; sleep if what is next waits for company."""
        desk, pace = self._desk, self._desk.pace
        began = now = time.monotonic_ns()
        ran = until = 0
        while desk.waiting and not until and ran < RUN_REQUESTS and pace.is_quick(now - began):
            taken = desk.serve(now)
            ran += len(taken.batch)
            until = taken.wait_until_ns
            now = time.monotonic_ns()
            if taken.batch and pace.runs % COLLECT_EVERY == 0:
                self._tidy(generation=1)
        if ran and pace.gathers:
            self._hear()  # before the answers go out: who is here now is not one of those answered
            pace.met(ran + len(desk.waiting))
        self._page.enter(Activity.IDLE, now)
        desk.expire(now)
        self._flush()
        if until and not self._hear():
            self._await(until - now)

    def _await(self, left_ns: int) -> None:
        """Sleep until a gateway speaks, or the time is up; finer than the milliseconds of `poll`."""
        fd, left_s = self._end.fileno(), min(max(left_ns, 0) / 1e9, self._beat_s)
        if fd < SELECT_LIMIT:
            select.select([fd], [], [], left_s)
        else:
            self._poller.poll(left_s * 1000)

    def _flush(self) -> None:
        for identity in self._outbox.flush():
            self._desk.forget(identity)

    def _tidy(self, generation: int) -> None:
        gc.collect(generation)
        self._page.device_bytes(self._execution.engine.device_bytes())
