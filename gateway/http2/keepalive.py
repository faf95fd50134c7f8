"""Pings a client that is silent, closes a connection that does not answer, and retires one that is old."""

from __future__ import annotations

import asyncio
import random
from typing import Final, Protocol

from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.outgoing import Outgoing
from mmsup.ipc.rpc.keepalive import RpcKeepalive

AGE_SPREAD: Final = 0.1
"""Connections that were opened together do not end together."""
_PING: Final = b"mmsupka\0"


class KeptConnection(Protocol):
    @property
    def uses(self) -> int:
        """Reads so far."""

    @property
    def is_evictable(self) -> bool:
        """No stream is open."""

    def retire(self) -> None: ...

    def abort(self) -> None: ...


class KeepaliveTimer:
    """One per connection; it looks once in the time of a ping, so that a busy connection costs nothing."""

    def __init__(self, options: RpcKeepalive) -> None:
        self.options = options
        self._connection: KeptConnection
        self._outgoing: Outgoing
        self._loop = asyncio.get_running_loop()
        self._seen_uses = 0
        self._pings = 0
        """Sent with nothing but their answers in between."""
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def start(self, connection: KeptConnection, outgoing: Outgoing) -> None:
        """The connection is there."""
        self._connection, self._outgoing, options = connection, outgoing, self.options
        if options.time_ms:
            self._call_later("ping", options.time_ms, self._look)
        if options.max_age_ms:
            spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)
            self._call_later("age", options.max_age_ms * spread, self._retire)

    def cancel(self) -> None:
        for each in self._timers.values():
            each.cancel()

    def _call_later(self, name: str, after_ms: float, action: object) -> None:
        assert callable(action)
        self._timers[name] = self._loop.call_later(after_ms / 1000, action)

    def _look(self) -> None:
        options, uses = self.options, self._connection.uses
        is_silent = uses == self._seen_uses
        self._seen_uses = uses
        if not is_silent:
            self._pings = 0
        may_ping = not options.max_pings_without_data or self._pings < options.max_pings_without_data
        if not is_silent or not may_ping or (self._connection.is_evictable and not options.without_calls):
            self._call_later("ping", options.time_ms, self._look)
            return
        self._pings += 1
        self._outgoing.write(frames.ping(_PING))
        self._call_later("ping", options.timeout_ms, self._judge)

    def _judge(self) -> None:
        """The time for the answer to a ping is over."""
        uses = self._connection.uses
        if uses == self._seen_uses:
            self._connection.abort()
            return
        self._seen_uses = uses
        self._call_later("ping", self.options.time_ms, self._look)

    def _retire(self) -> None:
        self._connection.retire()
        if self.options.max_age_grace_ms:
            self._call_later("age", self.options.max_age_grace_ms, self._connection.abort)
