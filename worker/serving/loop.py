"""The worker's one loop: hear, run, answer.

One thread, one poll over a few kinds of descriptors: a socket pair for each gateway (requests, extents, its end), the
control channel (Attach, Stop), the lifeline, and ZeroMQ's where that carries the requests. Each turn hears what has
come, runs from the head of the queue, and answers each gateway in one frame. Nothing here waits for anyone but in
`poll`.

All that has come is heard before anything runs: what still lay in a socket would be overtaken by lower classes, and
would miss the run that it could share. ZeroMQ's descriptor is edge-triggered, and
sending consumes edges too: it is read until dry in every turn, and before every sleep.

The status page says what this loop does, from this loop: BUSY since the start of the run, IDLE with a beat.
"""

from __future__ import annotations

import gc
import logging
import select
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import Activity, PageWriter
from mmsup.ipc.messages.worker_control import TO_WORKER, Attach, Stop
from mmsup.ipc.transport.codec import decode, unpack_frame
from mmsup.ipc.transport.control_channel import Closed, close_all
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.batching.batcher import RUN_REQUESTS
from mmsup.worker.execution.executor import Execution
from mmsup.worker.serving.gateway_links import Link, Links
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.request_handler import Desk
from mmsup.worker.startup import malloc_tuning
from mmsup.worker.startup.controller_channel import Control, orphaned

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import WorkerEnd  # zmq is for those who use it

log = logging.getLogger("mmsup.worker")

BEAT_S: Final = 0.5
"""Longest sleep of an idle loop; a quarter of the model's hang limit where that is shorter."""
RETRY_S: Final = 0.01
"""Sleep while a gateway does not take its replies."""
SELECT_LIMIT: Final = 1024
"""Descriptors from here on are too high for `select`."""
PACKETS_LIMIT: Final = 256
"""Of each pair in one turn: about what the kernel keeps for us, so that the next run waits for no gateway's zeal."""
COLLECT_EVERY: Final = 256
"""Batches between two collections of young garbage; the collector does not run by itself, in the middle of one."""


class Loop:
    """Everything between Ready and the end. `run` returns after Stop, when all that was asked is answered."""

    def __init__(self, control: Control, end: WorkerEnd | None, execution: Execution, page: PageWriter) -> None:
        self._control = control
        self._end = end
        self._execution = execution
        self._page = page
        self._poller = select.poll()
        self._links = Links(self._poller, end, execution.pinning)
        self._slack = malloc_tuning.Slack()
        self._outbox = Outbox()
        self._desk = Desk(execution, page, self._outbox)
        self._beat_s = min(BEAT_S, execution.spec.hang_limit_s / 4)
        self._strays = 0
        """Frames and records that nobody may have sent: of unknown gateways, of no known form."""
        self._tidied = 0
        """Runs until the last collection."""
        self._stopping = False
        self._poller.register(control.channel.fileno(), select.POLLIN)
        self._poller.register(control.lifeline, 0)  # only its end is of interest
        if end is not None:
            self._poller.register(end.fileno(), select.POLLIN)

    def run(self) -> None:
        """Serve until Stop."""
        self._page.enter(Activity.IDLE, time.monotonic_ns())
        desk = self._desk
        waiting = desk.waiting
        while True:
            heard = self._hear(0 if waiting.size else self._patience_s())
            if waiting.size:
                self._serve()
            elif heard:
                self._rest()
            elif self._is_done():
                return
            else:
                self._tidy(generation=2)
                self._rest()
                if self._slack.is_due(time.monotonic_ns()):
                    malloc_tuning.give_back()

    def _is_done(self) -> bool:
        return self._stopping and not self._desk.kept and not self._outbox.replies

    def _patience_s(self) -> float:
        if not self._stopping and not self._outbox.replies:
            return self._beat_s
        return 0 if self._is_done() else min(RETRY_S, self._beat_s)

    def _rest(self) -> None:
        now = time.monotonic_ns()
        self._page.turn(now)
        self._desk.expire(now)
        self._desk.flush()

    # Hearing.

    def _hear(self, timeout_s: float) -> bool:
        """Take what has come, waiting so long for it; whether there was anything."""
        heard = self._end is not None and self._hear_zeromq()
        events = self._poller.poll(0 if heard else timeout_s * 1000)
        now = time.monotonic_ns()
        for _ in range(PACKETS_LIMIT):
            if not events:
                break
            heard = True
            for fd, _events in events:
                link = self._links.by_fd.get(fd)
                if link is not None:
                    self._read(fd, link, now)
                else:
                    self._hear_other(fd)
            events = self._poller.poll(0)  # cheaper than a read that finds nothing
        return heard

    def _hear_other(self, fd: int) -> None:
        """Something came that is no pair's."""
        if fd == self._control.lifeline:
            orphaned()
        elif fd == self._control.channel.fileno():
            self._obey()
        else:
            self._hear_zeromq()

    def _read(self, fd: int, link: Link, now_ns: int) -> None:
        """Take one packet of a pair, or note its end."""
        try:
            records = link.receive()
        except WireError as error:
            self._stray(f"a frame that is none: {error}")
        except Closed:
            self._links.detach(fd)
            self._desk.forget(link)
        else:
            if records:
                self._take_in(link, records, now_ns)

    def _take_in(self, link: Link, records: Iterable[Any], now_ns: int) -> None:
        take_in = self._desk.take_in
        for record in records:
            if not take_in(link, record, now_ns):
                self._stray(f"a {type(record).__name__} that is not for a worker, or doubled")

    def _hear_zeromq(self) -> bool:
        """Take every frame that has come that way, until dry; whether there was any."""
        assert self._end is not None, "this worker has no such socket"
        heard = False
        while (received := self._end.receive()) is not None:
            heard = True
            identity, frame = received
            if self._links.get(identity) is None:
                self._obey()  # the brain attaches a gateway before that gateway speaks, but on another channel
            link = self._links.get(identity)
            if link is None:
                self._stray("a frame of a gateway that is not attached")
                continue
            try:
                self._take_in(link, unpack_frame(frame), time.monotonic_ns())
            except WireError as error:
                self._stray(f"a frame that is none: {error}")
        return heard

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

    def _stray(self, what: str) -> None:
        self._strays += 1
        if self._strays & (self._strays - 1) == 0:  # at 1, 2, 4, …: a flood fills no log
            log.warning("ignored %s (%d such so far)", what, self._strays)

    # Serving.

    def _serve(self) -> None:
        """Run what is next as long as the runs are quick, then answer; sleep if what is next waits for company."""
        desk, pace = self._desk, self._desk.pace
        began = now = time.monotonic_ns()
        until = 0
        ran = 0 if pace.batches else desk.serve_alone(now)
        if ran:
            now = time.monotonic_ns()
        while desk.waiting.size and not until and ran < RUN_REQUESTS and pace.is_quick(now - began):
            taken = desk.serve(now)
            ran += len(taken.batch)
            until = taken.wait_until_ns
            now = time.monotonic_ns()
        if pace.runs >= self._tidied + COLLECT_EVERY:
            self._tidied = pace.runs
            self._tidy(generation=1)
        if ran and pace.gathers:
            self._hear(0)  # before the answers go out: who is here now is not one of those answered
            pace.met(ran + desk.waiting.size)
        self._page.enter(Activity.IDLE, now)
        self._slack.ran(now)
        if desk.kept.results:
            desk.expire(now)
        desk.flush()
        if until and not self._hear(0):
            self._await(until - now)

    def _await(self, left_ns: int) -> None:
        """Sleep until a gateway speaks, or the time is up; finer than the milliseconds of `poll`."""
        sources = [*self._links, self._control.channel.fileno(), *([] if self._end is None else [self._end.fileno()])]
        left_s = min(max(left_ns, 0) / 1e9, self._beat_s)
        if max(sources) < SELECT_LIMIT:
            select.select(sources, [], [], left_s)
        else:
            self._poller.poll(left_s * 1000)

    def _tidy(self, generation: int) -> None:
        gc.collect(generation)
        self._page.device_bytes(self._execution.engine.device_bytes())
