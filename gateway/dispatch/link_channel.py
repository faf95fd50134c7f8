"""The gateway's end of the data channel to one worker: sends records in batches, receives replies in batches.

All records of one event-loop iteration go out in one frame. Where the channel is full they wait until it is writable.

What a worker may send is bounded, since all models' clients wait while a gateway reads it: the bytes and records of a
frame, the replies between two turns of others, and the time that its frames take to read (ReadingBudget).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from mmsup.gateway.dispatch.reading_budget import FREE_FRAME_BYTES, ReadingBudget
from mmsup.ipc.messages.calls import CallInputs, CallModel, EndCall
from mmsup.ipc.messages.data import InferReply
from mmsup.ipc.transport.codec import CallRecord, DataRecord, join_records, pack_record, read_records, unpack_records
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, DataChannel
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.ipc.transport.zeromq_channel import ZmqGatewayChannel

REPLIES_PER_ITERATION: Final = 8
"""Replies that are processed before other connections get their turn: a worker may have answered hundreds at once. With
32 the p99 of other clients during a flood was twice that with 8 (benchmarks/flood.py)."""

TOO_SLOW: Final = "its replies take too much of the gateway's time to read"
FINAL_FRAMES: Final = 1024
"""Most frames that are read when a link is closed; the socket buffer has room for fewer. A worker that is about to be
killed may still be sending."""


class LinkChannel:
    """Owned by a WorkerLink, which gets what was received by `on_records`: a few msgpack values, of which each should
    be a record. The link decodes those that it does not know by their bytes, with `decode`."""

    def __init__(self, channel: DataChannel | ZmqGatewayChannel, on_records: Callable[[list[Any]], None]) -> None:
        self._channel = channel
        self._on_records = on_records
        self.on_protocol_error: Callable[[str], None] = lambda _: None
        """Called with what the worker sent that it must not send."""
        self.last_progress_s = time.monotonic()
        """When a frame came last, or the first request in flight was sent."""
        self.closed = False
        self.outgoing: list[bytes] = []
        """Packed records. Who adds one calls `schedule_flush` if none is scheduled."""
        self._incoming: list[Any] = []
        """Received and not yet processed: any msgpack values."""
        self._budget = ReadingBudget()
        self.is_flush_scheduled = False
        self._receive_scheduled = self._waits_until_writable = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel.fileno(), self._on_readable)

    def send(self, record: DataRecord) -> None:
        """Send a record in the frame of this event-loop iteration."""
        self.outgoing.append(pack_record(record))
        if not self.is_flush_scheduled:
            self.schedule_flush()

    def schedule_flush(self) -> None:
        """Send what is in `outgoing` by the end of this iteration."""
        self.is_flush_scheduled = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.is_flush_scheduled = False
        if self.closed or self._waits_until_writable:
            return
        try:
            while self.outgoing:
                frame, count = join_records(self.outgoing, FRAME_LIMIT_BYTES)
                if not self._channel.send(frame):
                    if not self._channel.is_edge_triggered:  # ZeroMQ reports it on the descriptor that is polled anyway
                        self._waits_until_writable = True
                        self._loop.add_writer(self._channel.fileno(), self._on_writable)
                    return
                del self.outgoing[:count]
        except ChannelClosed:
            return  # the worker is exiting; the link is closed when its pidfd says that it has exited
        if self._channel.is_edge_triggered:
            self._schedule_receive()  # a send may have consumed the edge of something that arrived

    def _on_writable(self) -> None:
        self._waits_until_writable = False
        self._loop.remove_writer(self._channel.fileno())
        self._flush()

    def _on_readable(self) -> None:
        if self.closed:
            return
        has_processed = self._process_some()
        if not self._channel.is_edge_triggered:
            if self._incoming:
                self._schedule_receive()
        elif has_processed:
            self._schedule_receive()
        elif self.outgoing and not self.closed:
            self._flush()

    def _schedule_receive(self) -> None:
        if not self._receive_scheduled and not self.closed:
            self._receive_scheduled = True
            self._loop.call_soon(self._receive_more)

    def _receive_more(self) -> None:
        self._receive_scheduled = False
        self._on_readable()

    def receive_all(self) -> None:
        """Process what has arrived, before the link is closed."""
        for _ in range(FINAL_FRAMES):
            while self._incoming and not self.closed:
                self._process_some()
            if self.closed or not self._process_some():
                return

    def _process_some(self) -> bool:
        """Process up to REPLIES_PER_ITERATION replies; False if none has arrived."""
        some = self._incoming
        if not some:
            try:
                frame = self._channel.receive()
            except ChannelClosed:  # the worker is probably exiting; nothing more will arrive
                self._loop.remove_reader(self._channel.fileno())
                return False
            if frame is None:
                return False
            self.last_progress_s = began_s = time.monotonic()
            try:
                some = unpack_records(frame)
            except WireError as error:
                self._refuse(f"a malformed frame: {error}")
                return False
            if len(frame) > FREE_FRAME_BYTES and not self.charge(began_s):
                self._refuse(TOO_SLOW)
                return False
        if len(some) > REPLIES_PER_ITERATION:
            self._incoming = some[REPLIES_PER_ITERATION:]
            del some[REPLIES_PER_ITERATION:]
        else:
            self._incoming = []
        self._on_records(some)
        return True

    def decode(self, raw: Any) -> InferReply | CallRecord | None:  # a msgpack value
        """A reply of the worker, or a call of another model; None, after the error was reported, if it is none."""
        began_s = time.monotonic()
        try:
            (record,) = read_records([raw])
        except WireError as error:
            self._refuse(f"a malformed frame: {error}")
            return None
        if not self.charge(began_s):
            self._refuse(TOO_SLOW)
            return None
        if not isinstance(record, InferReply | CallModel | CallInputs | EndCall):
            self._refuse(f"a worker sent a {type(record).__name__}")
            return None
        return record

    def _refuse(self, text: str) -> None:
        self._incoming.clear()
        self.on_protocol_error(text)

    def charge(self, began_s: float) -> bool:
        """Something of the worker's was read since then; False if that takes too much of the gateway's time."""
        now_s = time.monotonic()
        return self._budget.spend(now_s - began_s, now_s)

    def close(self) -> None:
        self.closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        self.outgoing.clear()
        # They refer to the link, which refers to this. Without that cycle its 384 KiB to receive in are freed at once,
        # and not when the collector runs, which it does once in a hundred loads and unloads.
        self._on_records = self.on_protocol_error = _ignore


def _ignore(_: object) -> None:
    """What comes after the close."""
