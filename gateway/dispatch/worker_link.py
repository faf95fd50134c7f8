"""One link: this gateway's way to one worker life, and what is in flight on it.

Covers: sending in one frame per loop turn, taking replies, distrust of what they say, deadlines, the end of the life.
Does not cover: which link a request takes, what is done about a death (exchange.py); extents (arena.py).

The end comes once, by the first of: the pidfd (final), Condemned (the brain is about to kill), the loss of our trust.
Replies that had arrived before it still count. From then on nothing of this life is used.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from mmsup.gateway.dispatch.in_flight import InFlightRequest, InFlightTable, LostRequest
from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.reply_validation import ValidatedSignature, validate_reply, validate_signature
from mmsup.ipc.errors import ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.memory.status_page import StatusPageReader
from mmsup.ipc.messages.data import Cancel, GrantBuffer, InferReply
from mmsup.ipc.messages.gateway_control import LinkWorker
from mmsup.ipc.transport.codec import DataRecord, pack_limited, unpack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, DataChannel
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.zeromq_channel import ZmqGatewayChannel
from mmsup.ipc.two_generation_cache import BoundedCache

SIGNATURES_LIMIT: Final = 256
"""Words of results that a link remembers."""
REPLIES_PER_ITERATION: Final = 8
"""Replies that are taken in a turn of the loop: a worker may have answered hundreds at once, and others wait. With 32
the p99 of others beside a flood was twice that with 8 (benchmarks/flood.py)."""
EXPIRY_INTERVAL_S: Final = 0.01
"""How late a deadline may be noticed. One look over what is in flight costs less than a timer for each request."""


class WorkerLink:
    """The way to one life. `on_end` is called once, after every entry has been settled."""

    def __init__(
        self,
        said: LinkWorker,
        end: DataChannel | ZmqGatewayChannel,
        arena: LinkMemory,
        descriptors: tuple[int, int],
    ) -> None:
        """`descriptors`: the worker's pidfd, which the link owns, and its status page, which is mapped and closed."""
        self.message = said
        self.spec = said.spec
        self.metadata = said.metadata
        self.timeout_ns = int(said.spec.deadline_s * 1e9)
        """How long a request has, if it does not say."""
        self.memory = arena
        self.in_flight = InFlightTable()
        self.reserved_requests = 0
        """Requests that will come here, once their bodies are there."""
        self.is_routable = True
        self.closed = False
        self.lost_requests: list[LostRequest] = []
        """What was in flight at the end."""
        self.is_unrestricted = True
        """Requests may be sent at once: it is not over, and none of its model's is under suspicion."""
        self.last_batch: list[InFlightRequest] = []
        """At the end: our requests in the run that was going on."""
        self.ran_alone = False
        """It was one request alone."""
        self.unexpected_replies = 0
        self.last_progress = time.monotonic()
        self.on_close: Callable[[WorkerLink], None] = lambda _: None
        self.on_protocol_error: Callable[[WorkerLink, str], None] = lambda _link, _text: None
        self._channel = end
        self._outgoing: list[DataRecord] = []
        self._incoming: list[DataRecord] = []
        """Heard, and not yet taken."""
        self._receive_scheduled = False
        self._signatures: BoundedCache[bytes, ValidatedSignature] = BoundedCache(SIGNATURES_LIMIT)
        self._flush_scheduled = self._waits_until_writable = False
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._pidfd, page = descriptors
        self._page = StatusPageReader(page)
        os.close(page)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self.close)
        self._loop.add_reader(self._channel.fileno(), self._on_readable)

    @property
    def worker_id(self) -> tuple[int, int]:
        """Instance and generation."""
        return self.message.instance, self.message.generation

    def is_closed(self) -> bool:
        """Whether the end has come."""
        return self.closed

    # Sending.

    def submit(self, entry: InFlightRequest) -> None:
        """Send a request; its owner is told of its answer, its deadline, or the end."""
        assert not self.closed, "a request was given to a life that is over"
        if not self.in_flight.entries:
            self.last_progress = time.monotonic()
            if self._expiry_timer is None:
                self._expiry_timer = self._loop.call_later(EXPIRY_INTERVAL_S, self._expire_requests)
        entry.sent_ns = time.monotonic_ns()
        self.in_flight.add(entry)
        self.send(entry.message)
        failpoint("gateway.sent", self.spec.name)

    def send(self, record: DataRecord) -> None:
        """Send a record with the others of this loop turn."""
        self._outgoing.append(record)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def abandon(self, entry: InFlightRequest) -> None:
        """The caller is gone or its deadline passed: the worker may forget it, the slots wait for its reply."""
        entry.notified = True
        if not self.closed and not entry.abandoned:
            entry.abandoned = True
            self.send(Cancel(entry.message.id))

    def _expire_requests(self) -> None:
        self._expiry_timer = None
        if self.closed or not self.in_flight:
            return
        now_ns = time.monotonic_ns()
        for entry in [each for each in self.in_flight if each.message.deadline_ns <= now_ns]:
            if not entry.notified:
                self.abandon(entry)
                name = self.message.spec.name
                text = f"Request timeout expired: model '{name}' did not answer in time"
                entry.on_event(ServerError("deadline_exceeded", text, model=name))
        self._expiry_timer = self._loop.call_later(EXPIRY_INTERVAL_S, self._expire_requests)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self.closed or self._waits_until_writable:
            return
        try:
            while self._outgoing:
                frame, count = pack_limited(self._outgoing, FRAME_LIMIT_BYTES)
                if not self._channel.send(frame):
                    self._wait_until_writable()
                    return
                del self._outgoing[:count]
        except ChannelClosed:
            return  # the worker is ending: its pidfd has the last word
        if self._channel.is_edge_triggered:
            self._receive_all()  # a send may have consumed the edge of something that arrived

    def _wait_until_writable(self) -> None:
        """Come back when the worker has read; ZeroMQ says so on the descriptor that is watched anyway."""
        if not self._channel.is_edge_triggered:
            self._waits_until_writable = True
            self._loop.add_writer(self._channel.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        self._waits_until_writable = False
        self._loop.remove_writer(self._channel.fileno())
        self._flush()

    # Receiving.

    def _on_readable(self) -> None:
        if not self._channel.is_edge_triggered:
            self._process_some()
            if self._incoming and not self._receive_scheduled and not self.closed:
                self._receive_scheduled = True
                self._loop.call_soon(self._receive_more)
            return
        self._receive_all()
        if self._outgoing and not self.closed:
            self._flush()

    def _receive_more(self) -> None:
        self._receive_scheduled = False
        self._on_readable()

    def _receive_all(self) -> None:
        while not self.closed and self._process_some():
            pass

    def _process_some(self) -> bool:
        """Take some replies, if any are there."""
        if not self._incoming and not self._receive_frame():
            return False
        some = self._incoming[:REPLIES_PER_ITERATION]
        del self._incoming[:REPLIES_PER_ITERATION]
        for record in some:
            if isinstance(record, InferReply):
                self._on_reply(record)
            else:
                self.on_protocol_error(self, f"a worker sent a {type(record).__name__}")
                return False
        return True

    def _receive_frame(self) -> bool:
        """Read one frame, if one is there."""
        try:
            frame = self._channel.receive()
        except ChannelClosed:  # a hint that it is ending; nothing more will come
            self._loop.remove_reader(self._channel.fileno())
            return False
        if frame is None:
            return False
        self.last_progress = time.monotonic()
        try:
            self._incoming = unpack_frame(frame)
        except WireError as error:
            self.on_protocol_error(self, f"a frame that is none: {error}")
            return False
        return True

    def _on_reply(self, reply: InferReply) -> None:
        entry = self.in_flight.entries.get(reply.id)
        if entry is None:
            self.unexpected_replies += 1
            return
        failpoint("gateway.replied", self.spec.name)
        entry.signature = (
            (self._signatures.recent.get(reply.signature) or self._validated_signature(reply.signature))
            if reply.signature
            else None
        )
        fault = validate_reply(reply, entry.signature, entry.output_slot)
        if fault:
            reply = InferReply(reply.id, "bad_worker_reply", f"the worker's answer was not valid: {fault}")
        if reply.needed_bytes:
            if entry.notified and not entry.abandoned:
                self.on_protocol_error(self, "it asks for a grant while one is on its way")
            elif not entry.abandoned:
                entry.notified = True
                entry.on_event(reply)  # the entry stays: its owner grants more, or abandons it
            return
        del self.in_flight.entries[reply.id]
        if entry.output_slot is None and not entry.input_slots and not entry.notified:
            entry.notified = True
            entry.on_event(reply)
        else:
            self._complete(entry, reply)
        if fault:
            self.on_protocol_error(self, fault)

    def _validated_signature(self, words: bytes) -> ValidatedSignature:
        said = self._signatures.get(words)
        if said is None:
            said = validate_signature(words)
            self._signatures.add(words, said)
        return said

    def _complete(self, entry: InFlightRequest, reply: InferReply) -> None:
        for slot in entry.input_slots:
            self.memory.requests.free(slot)
        heard = not entry.abandoned
        if entry.output_slot is not None:
            if heard and any(isinstance(place, tuple) for place in reply.locations):
                entry.output_slot.transition(SlotState.DRAINING)
            else:
                self.memory.results.free(entry.output_slot)
                entry.output_slot = None
        if heard and entry.notified:
            entry.early_reply = reply
        elif heard:
            entry.notified = True
            entry.on_event(reply)

    def grant(self, entry: InFlightRequest, slot: Slot) -> None:
        """A larger out-slot for a result that the worker keeps, unless it has given up keeping it."""
        if entry.early_reply is not None:
            self.memory.results.free(slot)
            entry.on_event(entry.early_reply)
            return
        entry.notified = False
        if entry.output_slot is not None:
            self.memory.results.free(entry.output_slot)
        entry.output_slot = slot
        entry.larger_grants += 1
        self.send(GrantBuffer(entry.message.id, slot.segment, slot.offset, slot.size))
        failpoint("gateway.granted", self.spec.name)

    # The end.

    def close(self) -> None:
        """This life is over for us: take what has arrived, settle the rest, let go of everything."""
        if self.closed:
            return
        self._receive_all()
        if self.is_closed():
            return  # what arrived last was the end of our trust
        self.closed, self.is_unrestricted = True, False
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        os.close(self._pidfd)
        self._channel.close()
        self._outgoing.clear()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        running = self._page.executing()
        self.ran_alone = len(running) == 1
        self.lost_requests = self.in_flight.close(self._page.started(), running)
        self.last_batch = [each.request for each in self.lost_requests if each.executing]
        self._page.close()
        self.memory.close()
        self.on_close(self)
        failpoint("gateway.link_ended", self.spec.name)
