"""The receiving side of a call: messages out of what its client sends, how much it may send, and what it may take."""

from __future__ import annotations

import time
from typing import Final, Protocol

from mmsup.gateway.http2.streams import STREAM_WINDOW
from mmsup.gateway.rpc.calls.message_framing import PREFIX_BYTES, MessageReader
from mmsup.gateway.rpc.calls.receive_memory import ReceiveMemory
from mmsup.ipc.errors import CallerError, MmsupError, ServerError

MESSAGE_LIMIT_S: Final = 60.0
"""How long a client may take between two parts of one message."""
MESSAGE_TOTAL_S: Final = 600.0
"""How long it may take for a whole one, as for a body over HTTP."""


class MessageSource(Protocol):
    """The stream that messages come on."""

    @property
    def is_ended_by_peer(self) -> bool: ...

    def grant(self, size: int) -> None:
        """Let the peer send as many bytes more."""


class MessageSink(Protocol):
    def on_message(self, message: bytes) -> None: ...

    def on_half_close(self) -> None:
        """No more messages come."""

    def refuse(self, error: MmsupError) -> None:
        """What came is no message, or none came for too long. Nothing else is passed on then."""


class MessageReceiver:
    # fmt: off
    __slots__ = (
        "_began_s", "_granted_bytes", "_held_bytes", "_is_closed", "_last_part_s", "_memory", "_reader",
        "_received_bytes", "_sink", "_source", "_waiting", "_window",
    )
    # fmt: on

    def __init__(
        self, source: MessageSource, sink: MessageSink, memory: ReceiveMemory, reader: MessageReader, window: int
    ) -> None:
        """`window`: what a client may send beyond a message that is being received; 0 for a method that takes one."""
        self._source = source
        self._sink = sink
        self._memory = memory
        self._reader = reader
        self._window = window
        self._received_bytes = 0
        self._granted_bytes = STREAM_WINDOW
        self._held_bytes = 0
        self._waiting = bytearray()
        """What arrived while a message was being inflated; no more of it than the client had been granted."""
        self._last_part_s = self._began_s = time.monotonic()
        """When the last part came, and the first one of the message that is being received."""
        self._is_closed = False

    def on_data(self, data: memoryview) -> None:
        self._last_part_s = time.monotonic()
        self._received_bytes += len(data)
        if not self._reader.is_inflating:
            self._read(data)
            return
        try:
            self._wait(data)
        except MmsupError as error:
            self._sink.refuse(error)

    def on_end(self) -> None:
        if self._is_closed or self._reader.is_inflating:
            return
        if self._reader.is_between_messages:
            self._sink.on_half_close()
        else:
            self._sink.refuse(CallerError("bad_request", "the call ends within a message"))

    def on_tick(self, now_s: float) -> None:
        """Called every few seconds."""
        reader = self._reader
        if self._is_closed or self._source.is_ended_by_peer or reader.is_inflating:
            return
        if reader.is_between_messages and self._window:
            return
        if now_s > self._last_part_s + MESSAGE_LIMIT_S:
            self._sink.refuse(CallerError("body_timeout", f"no part of the message came within {MESSAGE_LIMIT_S:g} s"))
        elif now_s > self._began_s + MESSAGE_TOTAL_S:
            self._sink.refuse(CallerError("body_timeout", f"the message did not come within {MESSAGE_TOTAL_S:g} s"))

    def release(self, size: int) -> None:
        """A message of `size` bytes is not needed any more."""
        size = min(size, self._held_bytes)  # less if the call is over
        self._held_bytes -= size
        self._memory.budget.give_back(size)
        self._grant()

    def close(self) -> None:
        """The call is over."""
        self._is_closed = True
        self._memory.budget.give_back(self._held_bytes)
        self._held_bytes = 0
        self._reader.clear()
        self._waiting = bytearray()

    def _read(self, data: memoryview) -> None:
        reader = self._reader
        try:
            while len(data) and not self._is_closed:
                if reader.is_between_messages:
                    self._began_s = self._last_part_s
                held = reader.held_bytes
                message, data = reader.feed(data)
                self._hold((reader.held_bytes if message is None else len(message)) - held)
                if message is not None:
                    self._sink.on_message(message)
                elif reader.is_inflating:
                    self._wait(data)
                    self._memory.inflate_queue.add(self._inflate)
                    break
        except MmsupError as error:
            self._sink.refuse(error)
        self._grant()

    def _inflate(self) -> bool:
        """One slice more; whether there is more to inflate."""
        reader = self._reader
        if self._is_closed:
            return False
        try:
            held = reader.held_bytes
            message = reader.inflate()
            self._hold((reader.held_bytes if message is None else len(message)) - held)
        except MmsupError as error:
            self._sink.refuse(error)
            return False
        if message is None:
            return True
        waiting, self._waiting = self._waiting, bytearray()
        self._hold(-len(waiting))
        self._sink.on_message(message)
        self._read(memoryview(waiting))
        if self._source.is_ended_by_peer:
            self.on_end()
        return False

    def _wait(self, data: memoryview) -> None:
        self._hold(len(data))
        self._waiting += data

    def _hold(self, size: int) -> None:
        """Hold as many bytes more; fewer where a message is smaller than it was when compressed."""
        if size > 0 and not self._memory.budget.take(size):
            raise ServerError("no_buffer", "the gateway has no memory for this message", retry_after_s=1)
        if size < 0:
            self._memory.budget.give_back(-size)
        self._held_bytes += size

    def _grant(self) -> None:
        """Let the client send the rest of its message, and as much more as the method takes while others wait."""
        missing = self._reader.missing_bytes
        ahead = max(self._window - self._held_bytes, 0)
        wanted = self._received_bytes + missing + (PREFIX_BYTES if self._window else 0) + ahead
        if wanted > self._granted_bytes and (missing or ahead >= self._window // 2):
            self._source.grant(wanted - self._granted_bytes)
            self._granted_bytes = wanted
