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

from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc import exit_codes
from mmsup.ipc.errors import make_error
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import (
    TO_GATEWAY,
    AddPoisonEntries,
    BadReply,
    CommandReply,
    CommandRequest,
    Condemned,
    ConfigureGateway,
    DrainGateway,
    GatewayDrained,
    InFlight,
    LinkClosed,
    LinkWorker,
    Ping,
    Pong,
    RemovePoisonEntry,
    RequestOverdue,
    RetireGateway,
    Route,
    Synced,
    UnlinkWorker,
    Unroute,
    Verdict,
)
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel, close_fds
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.zeromq_channel import ZmqContext

LINK_DESCRIPTORS: Final = 3
CHANNEL_OVERFLOW: Final = 1
LOST_DETAILS_LIMIT: Final = 64
"""Of the requests that a life ended with, told one by one; of the others only their number."""
ID_CHARACTERS: Final = 64


class ControllerClient:
    """One per gateway process, over the backend that Configure gave it."""

    def __init__(self, channel: ControlChannel, configure: ConfigureGateway, backend: Router, hub: ZmqContext) -> None:
        self._channel = channel
        self._configure = configure
        self._router = backend
        self._zeromq_hub = hub
        self._links_received: set[tuple[int, int]] = set()
        self._outgoing: deque[bytes] = deque()
        self._drain_task: asyncio.Task[None] | None = None
        self.synced = asyncio.Event()
        """Everything that there is has been heard, once."""
        self._loop = asyncio.get_running_loop()
        backend.poison_requests.send = self._send
        backend.send_call = lambda number, verb, arguments: self._send(CommandRequest(number, verb, arguments))
        backend.send_ended = lambda link: self._send(link_closed_message(link, time.monotonic_ns()))
        self._loop.add_reader(channel.fileno(), self._read)
        self._send_hello()

    def _send_hello(self) -> None:
        self._send(Hello("gateway", WIRE_VERSION, self._configure.seat, self._configure.generation))

    # Out.

    def _send(self, message: object) -> None:
        self._outgoing.append(encode(message))
        if len(self._outgoing) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._outgoing:
                if not self._channel.send(self._outgoing[0]):
                    self._loop.add_writer(self._channel.fileno(), self._write)
                    return
                self._outgoing.popleft()
        except ChannelClosed:
            exit_parent_lost()
        self._loop.remove_writer(self._channel.fileno())

    def report_overdue(self, now: float) -> None:
        """Tell of workers that have not answered for too long; called a few times a second."""
        for link, age_s in self._router.overdue_links(now):
            self._send(RequestOverdue(*link.worker_id, age_s))

    # In.

    def _read(self) -> None:
        while True:
            try:
                received = self._channel.receive()
            except ChannelClosed:
                exit_parent_lost()
            except OSError as error:
                exit_channel_overflow(error)
            if received is None:
                return
            data, descriptors = received
            self._on_message(decode(data, TO_GATEWAY), descriptors)

    def _on_message(self, message: Any, descriptors: list[int]) -> None:  # one of TO_GATEWAY, as `decode` promises
        match message:
            case LinkWorker():
                self._on_link(message, descriptors)
                return
            case Route():
                self._router.routes.put(message)
                self._router.notify_waiters()
                failpoint("gateway.routed", message.name)
            case Unroute():
                self._router.routes.drop(message.name)
                self._router.notify_waiters()
            case UnlinkWorker():
                self._router.unlink((message.instance, message.generation))
                failpoint("gateway.unlinked")
            case Condemned() | Verdict():
                self._on_verdict(message)
            case CommandReply():
                self._on_answer(message)
            case AddPoisonEntries() | RemovePoisonEntry():
                self._router.poison_requests.on_message(message)
            case Ping():
                self._send(Pong(message.number))
            case ConfigureGateway():
                self._on_configure(message)
            case Synced():
                self._on_synced(message)
            case DrainGateway():
                self._on_drain()
            case RetireGateway():
                self._router.retired = True
            case _:
                raise AssertionError(f"{type(message).__name__} is in TO_GATEWAY and not handled")
        close_fds(descriptors)

    def _on_configure(self, message: ConfigureGateway) -> None:
        """A new brain: the same bounds, everything else anew."""
        assert message.wire_version == WIRE_VERSION, (
            f"the brain speaks wire {message.wire_version}, this gateway {WIRE_VERSION}"
        )
        self._router.on_controller_restart()
        self._router.routes.begin_sync()
        self._links_received.clear()
        self._send_hello()

    def _on_synced(self, message: Synced) -> None:
        backend = self._router
        backend.routes.end_sync()
        for life in backend.links.keys() - self._links_received:
            backend.unlink(life)
        backend.set_readiness(message.ready, message.reason)
        backend.notify_waiters()
        failpoint("gateway.synced")
        self.synced.set()

    def _on_link(self, message: LinkWorker, descriptors: list[int]) -> None:
        life = (message.instance, message.generation)
        self._links_received.add(life)
        if len(descriptors) != LINK_DESCRIPTORS or life in self._router.links:
            close_fds(descriptors)  # known already: a new brain says what its predecessor said
            return
        pidfd, page, fd = descriptors
        backend, pair = self._router, DataChannel(fd)
        arena = LinkMemory(pair, backend.quota, backend.executor, backend.release_idle_memory)
        end = self._zeromq_hub.connect(message.address, message.identity) if message.address else pair
        link = WorkerLink(message, end, arena, (pidfd, page))
        link.on_protocol_error = self._on_protocol_error
        backend.add_link(link)
        failpoint("gateway.linked", message.spec.name)

    def _on_protocol_error(self, link: WorkerLink, text: str) -> None:
        """A worker broke the protocol: nothing of it is used any more, and the brain shall end it."""
        name = link.message.spec.name
        error = make_error(
            "bad_worker_reply", f"the worker of model '{name}' gave an answer that is not valid", model=name
        )
        self._router.set_verdict(link.worker_id, error)
        self._send(BadReply(*link.worker_id, text))
        link.close()

    def _on_verdict(self, message: Condemned | Verdict) -> None:
        life = (message.instance, message.generation)
        retryable = message.retryable if isinstance(message, Verdict) else None
        self._router.set_verdict(life, make_error(message.code, message.text, retryable=retryable))
        failpoint("gateway.judged")
        link = self._router.links.get(life)
        if link is not None:
            link.close()

    def _on_answer(self, message: CommandReply) -> None:
        failpoint("gateway.answered")
        error = None
        if message.code:
            error = make_error(message.code, message.text, retry_after_s=message.retry_after_s or None)
        self._router.on_controller_answer(message.id, message.result, error)

    def _on_drain(self) -> None:
        if self._drain_task is None or self._drain_task.done():  # a brain that took over has not heard it
            self._router.draining = True
            failpoint("gateway.draining")
            self._drain_task = asyncio.create_task(self._send_drained(), name="drain")

    async def _send_drained(self) -> None:
        await self._router.wait_until_drained()
        failpoint("gateway.drained")
        self._send(GatewayDrained())

    async def close(self) -> None:
        """Stop listening to the brain."""
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        if self._drain_task is not None:
            self._drain_task.cancel()
            await asyncio.gather(self._drain_task, return_exceptions=True)
        self._channel.close()


def exit_channel_overflow(error: OSError) -> NoReturn:
    """Something the brain said is lost, and with it perhaps a worker; the next gateway of this place is told all."""
    sys.stderr.write(f"the brain cannot be heard: {error.strerror}\n")
    sys.stderr.flush()
    os._exit(CHANNEL_OVERFLOW)


def link_closed_message(link: WorkerLink, now_ns: int) -> LinkClosed:
    """What was in flight there at its end; those that had begun first, for one of them may be the cause."""
    lost = sorted(link.lost_requests, key=lambda each: not each.started)
    named = tuple(
        InFlight(
            each.request.client_id[:ID_CHARACTERS],
            each.started,
            each.request.abandoned,
            (now_ns - each.request.sent_ns) / 1e9,
        )
        for each in lost[:LOST_DETAILS_LIMIT]
    )
    return LinkClosed(*link.worker_id, len(lost), sum(each.started for each in lost), named)


def exit_parent_lost() -> NoReturn:
    """The keeper is gone and takes everything with it."""
    os._exit(exit_codes.KEEPER_LOST)
