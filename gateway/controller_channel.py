"""The control channel: what the brain says to this gateway, and what it is told.

Covers: reading and writing messages with their descriptors, doing what they say to the backend.
Does not cover: deciding anything. The first message is Configure; a brain that comes later begins with it again, and
everything it does not name between that and Synced is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from typing import Any, Final, NoReturn

from mmsup.gateway.dispatch.link_memory import LinkArena
from mmsup.gateway.dispatch.router import Backend
from mmsup.gateway.dispatch.worker_link import Link
from mmsup.ipc import exit_codes
from mmsup.ipc.errors import error_of
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages.gateway_control import (
    TO_GATEWAY,
    Answer,
    Ask,
    BadReply,
    Condemned,
    Configure,
    Drain,
    Drained,
    Ended,
    InFlight,
    Overdue,
    Pardon,
    Ping,
    Pong,
    Quarantine,
    Retire,
    Route,
    Synced,
    Unlink,
    Unroute,
    Verdict,
)
from mmsup.ipc.messages.gateway_control import Link as LinkMessage
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import Closed, Seqpacket, close_all
from mmsup.ipc.transport.data_channel import PairEnd
from mmsup.ipc.transport.zeromq_channel import Hub

LINK_DESCRIPTORS: Final = 3
DEAF: Final = 1
NAMED: Final = 64
"""Of the requests that a life ended with, told one by one; of the others only their number."""
ID_CHARACTERS: Final = 64


class Control:
    """One per gateway process, over the backend that Configure gave it."""

    def __init__(self, channel: Seqpacket, configure: Configure, backend: Backend, hub: Hub) -> None:
        self._channel = channel
        self._configure = configure
        self._backend = backend
        self._hub = hub
        self._named: set[tuple[int, int]] = set()
        self._outbox: deque[bytes] = deque()
        self._draining: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        """Everything that there is has been heard, once."""
        self._loop = asyncio.get_running_loop()
        backend.lists.say = self._say
        backend.send_ask = lambda number, verb, arguments: self._say(Ask(number, verb, arguments))
        backend.send_ended = lambda link: self._say(ended(link, time.monotonic_ns()))
        self._loop.add_reader(channel.fileno(), self._read)
        self._hello()

    def _hello(self) -> None:
        self._say(Hello("gateway", WIRE_VERSION, self._configure.gateway, self._configure.generation))

    # Out.

    def _say(self, message: object) -> None:
        self._outbox.append(encode(message))
        if len(self._outbox) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._outbox:
                if not self._channel.send(self._outbox[0]):
                    self._loop.add_writer(self._channel.fileno(), self._write)
                    return
                self._outbox.popleft()
        except Closed:
            orphaned()
        self._loop.remove_writer(self._channel.fileno())

    def report_overdue(self, now: float) -> None:
        """Tell of workers that have not answered for too long; called a few times a second."""
        for link, age_s in self._backend.overdue(now):
            self._say(Overdue(*link.life, age_s))

    # In.

    def _read(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except Closed:
                orphaned()
            except OSError as error:
                deaf(error)
            if received is None:
                return
            data, descriptors = received
            self._do(decode(data, TO_GATEWAY), descriptors)

    def _do(self, message: Any, descriptors: list[int]) -> None:  # one of TO_GATEWAY, as `decode` promises
        match message:
            case LinkMessage():
                self._link(message, descriptors)
                return
            case Route():
                self._backend.routes.put(message)
                self._backend.changed()
                faultpoint("gateway.routed", message.name)
            case Unroute():
                self._backend.routes.drop(message.name)
                self._backend.changed()
            case Unlink():
                self._backend.unlink((message.instance, message.generation))
                faultpoint("gateway.unlinked")
            case Condemned() | Verdict():
                self._judge(message)
            case Answer():
                self._answer(message)
            case Quarantine() | Pardon():
                self._backend.lists.hear(message)
            case Ping():
                self._say(Pong(message.number))
            case Configure():
                self._begin(message)
            case Synced():
                self._synced(message)
            case Drain():
                self._drain()
            case Retire():
                self._backend.retired = True
            case _:
                raise AssertionError(f"{type(message).__name__} is in TO_GATEWAY and not handled")
        close_all(descriptors)

    def _begin(self, message: Configure) -> None:
        """A new brain: the same bounds, everything else anew."""
        assert message.wire == WIRE_VERSION, f"the brain speaks wire {message.wire}, this gateway {WIRE_VERSION}"
        self._backend.brain_is_new()
        self._backend.routes.begin()
        self._named.clear()
        self._hello()

    def _synced(self, message: Synced) -> None:
        backend = self._backend
        backend.routes.end()
        for life in backend.links.keys() - self._named:
            backend.unlink(life)
        backend.set_readiness(message.ready, message.reason)
        backend.changed()
        faultpoint("gateway.synced")
        self.synced.set()

    def _link(self, message: LinkMessage, descriptors: list[int]) -> None:
        life = (message.instance, message.generation)
        self._named.add(life)
        if len(descriptors) != LINK_DESCRIPTORS or life in self._backend.links:
            close_all(descriptors)  # known already: a new brain says what its predecessor said
            return
        pidfd, page, fd = descriptors
        backend, pair = self._backend, PairEnd(fd)
        arena = LinkArena(pair, backend.quota, backend.executor, backend.reclaim)
        end = self._hub.connect(message.address, message.identity) if message.address else pair
        link = Link(message, end, arena, (pidfd, page))
        link.on_fault = self._distrust
        backend.add_link(link)
        faultpoint("gateway.linked", message.spec.name)

    def _distrust(self, link: Link, text: str) -> None:
        """A worker broke the protocol: nothing of it is used any more, and the brain shall end it."""
        name = link.said.spec.name
        error = error_of(
            "bad_worker_reply", f"the worker of model '{name}' gave an answer that is not valid", model=name
        )
        self._backend.judge(link.life, error)
        self._say(BadReply(*link.life, text))
        link.finish()

    def _judge(self, message: Condemned | Verdict) -> None:
        life = (message.instance, message.generation)
        retryable = message.retryable if isinstance(message, Verdict) else None
        self._backend.judge(life, error_of(message.code, message.text, retryable=retryable))
        faultpoint("gateway.judged")
        link = self._backend.links.get(life)
        if link is not None:
            link.finish()

    def _answer(self, message: Answer) -> None:
        faultpoint("gateway.answered")
        error = None
        if message.code:
            error = error_of(message.code, message.text, retry_after_s=message.retry_after_s or None)
        self._backend.answered(message.id, message.result, error)

    def _drain(self) -> None:
        if self._draining is None or self._draining.done():  # a brain that took over has not heard it
            self._backend.draining = True
            faultpoint("gateway.draining")
            self._draining = asyncio.create_task(self._say_drained(), name="drain")

    async def _say_drained(self) -> None:
        await self._backend.drained()
        faultpoint("gateway.drained")
        self._say(Drained())

    async def close(self) -> None:
        """Stop listening to the brain."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.gather(self._draining, return_exceptions=True)
        self._channel.close()


def deaf(error: OSError) -> NoReturn:
    """Something the brain said is lost, and with it perhaps a worker; the next gateway of this place is told all."""
    sys.stderr.write(f"the brain cannot be heard: {error.strerror}\n")
    sys.stderr.flush()
    os._exit(DEAF)


def ended(link: Link, now_ns: int) -> Ended:
    """What was in flight there at its end; those that had begun first, for one of them may be the cause."""
    lost = sorted(link.lost, key=lambda each: not each.begun)
    named = tuple(
        InFlight(each.entry.name[:ID_CHARACTERS], each.begun, each.entry.abandoned, (now_ns - each.entry.sent_ns) / 1e9)
        for each in lost[:NAMED]
    )
    return Ended(*link.life, len(lost), sum(each.begun for each in lost), named)


def orphaned() -> NoReturn:
    """The keeper is gone and takes everything with it."""
    os._exit(exit_codes.ORPHANED)
