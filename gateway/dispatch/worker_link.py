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

from mmsup.gateway.dispatch.in_flight import Entry, Ledger, Lost
from mmsup.gateway.dispatch.link_memory import LinkArena
from mmsup.gateway.dispatch.reply_validation import Checked, checked, fault_of
from mmsup.ipc.errors import ServerError
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.memory.status_page import PageReader
from mmsup.ipc.messages.data import Drop, Grant, Reply
from mmsup.ipc.messages.gateway_control import Link as LinkMessage
from mmsup.ipc.transport.codec import Record, pack_some, unpack_frame
from mmsup.ipc.transport.control_channel import Closed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, PairEnd
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.zeromq_channel import GatewayEnd
from mmsup.ipc.two_generation_cache import Halves

OUTLINES_LIMIT: Final = 256
"""Words of results that a link remembers."""
SOME: Final = 8
"""Replies that are taken in a turn of the loop: a worker may have answered hundreds at once, and others wait. With 32
the p99 of others beside a flood was twice that with 8 (benchmarks/flood.py)."""
EXPIRY_S: Final = 0.01
"""How late a deadline may be noticed. One look over what is in flight costs less than a timer for each request."""


class Link:
    """The way to one life. `on_end` is called once, after every entry has been settled."""

    def __init__(
        self,
        said: LinkMessage,
        end: PairEnd | GatewayEnd,
        arena: LinkArena,
        descriptors: tuple[int, int],
    ) -> None:
        """`descriptors`: the worker's pidfd, which the link owns, and its status page, which is mapped and closed."""
        self.said = said
        self.spec = said.spec
        self.metadata = said.metadata
        self.deadline_ns = int(said.spec.deadline_s * 1e9)
        """How long a request has, if it does not say."""
        self.arena = arena
        self.ledger = Ledger()
        self.claims = 0
        """Requests that will come here, once their bodies are there."""
        self.wanted = True
        self.ended = False
        self.lost: list[Lost] = []
        """What was in flight at the end."""
        self.is_plain = True
        """Requests may be sent at once: it is not over, and none of its model's is under suspicion."""
        self.last_run: list[Entry] = []
        """At the end: our requests in the run that was going on."""
        self.ran_alone = False
        """It was one request alone."""
        self.strays = 0
        self.last_progress = time.monotonic()
        self.on_end: Callable[[Link], None] = lambda _: None
        self.on_fault: Callable[[Link, str], None] = lambda _link, _text: None
        self._end = end
        self._outbox: list[Record] = []
        self._inbox: list[Record] = []
        """Heard, and not yet taken."""
        self._goes_on = False
        self._outlines: Halves[bytes, Checked] = Halves(OUTLINES_LIMIT)
        self._flush_at_hand = self._waits_for_room = False
        self._expiry: asyncio.TimerHandle | None = None
        self._pidfd, page = descriptors
        self._page = PageReader(page)
        os.close(page)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self.finish)
        self._loop.add_reader(self._end.fileno(), self._wake)

    @property
    def life(self) -> tuple[int, int]:
        """Instance and generation."""
        return self.said.instance, self.said.generation

    def is_over(self) -> bool:
        """Whether the end has come."""
        return self.ended

    # Sending.

    def submit(self, entry: Entry) -> None:
        """Send a request; its owner is told of its answer, its deadline, or the end."""
        assert not self.ended, "a request was given to a life that is over"
        if not self.ledger.entries:
            self.last_progress = time.monotonic()
            if self._expiry is None:
                self._expiry = self._loop.call_later(EXPIRY_S, self._expire)
        entry.sent_ns = time.monotonic_ns()
        self.ledger.add(entry)
        self.say(entry.request)
        faultpoint("gateway.sent", self.spec.name)

    def say(self, record: Record) -> None:
        """Send a record with the others of this loop turn."""
        self._outbox.append(record)
        if not self._flush_at_hand:
            self._flush_at_hand = True
            self._loop.call_soon(self._flush)

    def abandon(self, entry: Entry) -> None:
        """The caller is gone or its deadline passed: the worker may forget it, the slots wait for its reply."""
        entry.told = True
        if not self.ended and not entry.abandoned:
            entry.abandoned = True
            self.say(Drop(entry.request.id))

    def _expire(self) -> None:
        self._expiry = None
        if self.ended or not self.ledger:
            return
        now_ns = time.monotonic_ns()
        for entry in [each for each in self.ledger if each.request.deadline_ns <= now_ns]:
            if not entry.told:
                self.abandon(entry)
                name = self.said.spec.name
                text = f"Request timeout expired: model '{name}' did not answer in time"
                entry.tell(ServerError("deadline_exceeded", text, model=name))
        self._expiry = self._loop.call_later(EXPIRY_S, self._expire)

    def _flush(self) -> None:
        self._flush_at_hand = False
        if self.ended or self._waits_for_room:
            return
        try:
            while self._outbox:
                frame, count = pack_some(self._outbox, FRAME_LIMIT_BYTES)
                if not self._end.send(frame):
                    self._wait_for_room()
                    return
                del self._outbox[:count]
        except Closed:
            return  # the worker is ending: its pidfd has the last word
        if self._end.is_edge_triggered:
            self._drain()  # a send may have consumed the edge of something that arrived

    def _wait_for_room(self) -> None:
        """Come back when the worker has read; ZeroMQ says so on the descriptor that is watched anyway."""
        if not self._end.is_edge_triggered:
            self._waits_for_room = True
            self._loop.add_writer(self._end.fileno(), self._has_room)

    def _has_room(self) -> None:
        self._waits_for_room = False
        self._loop.remove_writer(self._end.fileno())
        self._flush()

    # Receiving.

    def _wake(self) -> None:
        if not self._end.is_edge_triggered:
            self._receive()
            if self._inbox and not self._goes_on and not self.ended:
                self._goes_on = True
                self._loop.call_soon(self._go_on)
            return
        self._drain()
        if self._outbox and not self.ended:
            self._flush()

    def _go_on(self) -> None:
        self._goes_on = False
        self._wake()

    def _drain(self) -> None:
        while not self.ended and self._receive():
            pass

    def _receive(self) -> bool:
        """Take some replies, if any are there."""
        if not self._inbox and not self._hear():
            return False
        some = self._inbox[:SOME]
        del self._inbox[:SOME]
        for record in some:
            if isinstance(record, Reply):
                self._take(record)
            else:
                self.on_fault(self, f"a worker sent a {type(record).__name__}")
                return False
        return True

    def _hear(self) -> bool:
        """Read one frame, if one is there."""
        try:
            frame = self._end.receive()
        except Closed:  # a hint that it is ending; nothing more will come
            self._loop.remove_reader(self._end.fileno())
            return False
        if frame is None:
            return False
        self.last_progress = time.monotonic()
        try:
            self._inbox = unpack_frame(frame)
        except WireError as error:
            self.on_fault(self, f"a frame that is none: {error}")
            return False
        return True

    def _take(self, reply: Reply) -> None:
        entry = self.ledger.entries.get(reply.id)
        if entry is None:
            self.strays += 1
            return
        faultpoint("gateway.replied", self.spec.name)
        entry.said = (self._outlines.young.get(reply.words) or self._said(reply.words)) if reply.words else None
        fault = fault_of(reply, entry.said, entry.out)
        if fault:
            reply = Reply(reply.id, "bad_worker_reply", f"the worker's answer was not valid: {fault}")
        if reply.need:
            if entry.told and not entry.abandoned:
                self.on_fault(self, "it asks for a grant while one is on its way")
            elif not entry.abandoned:
                entry.told = True
                entry.tell(reply)  # the entry stays: its owner grants more, or abandons it
            return
        del self.ledger.entries[reply.id]
        if entry.out is None and not entry.slots and not entry.told:
            entry.told = True
            entry.tell(reply)
        else:
            self._settle(entry, reply)
        if fault:
            self.on_fault(self, fault)

    def _said(self, words: bytes) -> Checked:
        said = self._outlines.get(words)
        if said is None:
            said = checked(words)
            self._outlines.put(words, said)
        return said

    def _settle(self, entry: Entry, reply: Reply) -> None:
        for slot in entry.slots:
            self.arena.requests.free(slot)
        heard = not entry.abandoned
        if entry.out is not None:
            if heard and any(isinstance(place, tuple) for place in reply.places):
                entry.out.move(SlotState.DRAINING)
            else:
                self.arena.results.free(entry.out)
                entry.out = None
        if heard and entry.told:
            entry.early = reply
        elif heard:
            entry.told = True
            entry.tell(reply)

    def grant(self, entry: Entry, slot: Slot) -> None:
        """A larger out-slot for a result that the worker keeps, unless it has given up keeping it."""
        if entry.early is not None:
            self.arena.results.free(slot)
            entry.tell(entry.early)
            return
        entry.told = False
        if entry.out is not None:
            self.arena.results.free(entry.out)
        entry.out = slot
        entry.asked_again += 1
        self.say(Grant(entry.request.id, slot.segment, slot.offset, slot.size))
        faultpoint("gateway.granted", self.spec.name)

    # The end.

    def finish(self) -> None:
        """This life is over for us: take what has arrived, settle the rest, let go of everything."""
        if self.ended:
            return
        self._drain()
        if self.is_over():
            return  # what arrived last was the end of our trust
        self.ended, self.is_plain = True, False
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._end.fileno())
        self._loop.remove_writer(self._end.fileno())
        os.close(self._pidfd)
        self._end.close()
        self._outbox.clear()
        if self._expiry is not None:
            self._expiry.cancel()
        running = self._page.running()
        self.ran_alone = len(running) == 1
        self.lost = self.ledger.end(self._page.begun(), running)
        self.last_run = [each.entry for each in self.lost if each.running]
        self._page.close()
        self.arena.close()
        self.on_end(self)
        faultpoint("gateway.link_ended", self.spec.name)
