"""How gRPC connections are kept alive, and which of them are too old: the options `--grpc-keepalive-…` and the like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class RpcKeepalive:
    """Times in milliseconds, as the flags have them."""

    time_ms: int = 7_200_000
    """After so long without a byte from the client it is sent a ping; 0: never."""
    timeout_ms: int = 20_000
    """Without an answer for so long the connection is closed."""
    without_calls: bool = False
    """Also while no call is open."""
    max_pings_without_data: int = 2
    """How many pings are sent with nothing else in between; 0: any number."""
    min_ping_interval_ms: int = -1
    """Pings of a client that come sooner after the one before, with no data in between, are strikes; -1: none are, and
    pings are bounded as other frames that ask for an answer."""
    max_ping_strikes: int = 2
    """A client with more of them is told to go; 0: none is."""
    max_age_ms: int = 0
    """How long a connection may take new calls; 0: for ever."""
    max_age_grace_ms: int = 0
    """How long its open calls may go on then; 0: as long as they take."""


DEFAULT_KEEPALIVE: Final = RpcKeepalive()
