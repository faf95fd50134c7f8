"""Which pings of a client come too soon after the one before. Pure.

As the gRPC libraries count them: a ping is a strike if less than the interval has passed since the last one and nothing
was sent to the client meanwhile. With no call open the interval is two hours, unless pings without calls are allowed.
"""

from __future__ import annotations

from typing import Final

from mmsup.ipc.rpc.keepalive import RpcKeepalive

NO_CALLS_INTERVAL_S: Final = 7200.0


class PingStrikes:
    __slots__ = ("_allowed_at_s", "_data_writes", "_options", "_strikes")

    def __init__(self, options: RpcKeepalive) -> None:
        self._options = options
        self._allowed_at_s = float("-inf")
        self._data_writes = 0
        self._strikes = 0

    def is_too_much(self, now_s: float, data_writes: int, *, has_calls: bool) -> bool:
        """Count a ping. `data_writes`: how many times data was sent to the client, since the connection began."""
        options = self._options
        if options.min_ping_interval_ms < 0 or not options.max_ping_strikes:
            return False
        if data_writes != self._data_writes:
            self._data_writes, self._strikes, self._allowed_at_s = data_writes, 0, float("-inf")
        is_strike = now_s < self._allowed_at_s
        interval_s = options.min_ping_interval_ms / 1000
        if not has_calls and not options.without_calls:
            interval_s = max(interval_s, NO_CALLS_INTERVAL_S)
        self._allowed_at_s = now_s + interval_s
        self._strikes += is_strike
        return self._strikes > options.max_ping_strikes
