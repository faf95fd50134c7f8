"""How many frames that cost us more than their sender one connection may send. Pure.

What each kind of frame is in the attacks that are known, and what honest clients send:

- resets of streams that were just opened (rapid reset, CVE-2023-44487): clients give up what takes
  too long, hardly what they have just asked for
- PING and SETTINGS, which we must answer: one SETTINGS at the start, a PING each few seconds while nothing else goes
  on, and one or two for each message, by which clients measure the line
- empty DATA and CONTINUATION frames (CVE-2019-9518, CVE-2024-27316): hardly any
- WINDOW_UPDATE and PRIORITY, and resets of streams that are open for a while or have ended: one or two for each answer

Each kind has an allowance that comes back with time; a connection that has used one up is told to calm down, and ends.
"""

from __future__ import annotations

from typing import Final

from mmsup.gateway.http2.ping_strikes import PingStrikes
from mmsup.ipc.rpc.keepalive import DEFAULT_KEEPALIVE, RpcKeepalive

RESETS: Final = "resets"
ANSWERED: Final = "answered"
EMPTY: Final = "empty"
UPDATES: Final = "updates"
ALLOWANCES: Final = {RESETS: (500.0, 100.0), ANSWERED: (200.0, 20.0), EMPTY: (200.0, 20.0), UPDATES: (1e4, 2e4)}
"""What may come at once, and what comes back each second."""


class FloodLimit:
    """One per connection. Times in seconds of one monotonic clock."""

    __slots__ = ("_left", "_seen_s", "strikes")

    def __init__(self, now_s: float, keepalive: RpcKeepalive = DEFAULT_KEEPALIVE) -> None:
        self.strikes = PingStrikes(keepalive)
        self._left = {kind: allowance for kind, (allowance, _) in ALLOWANCES.items()}
        self._seen_s = dict.fromkeys(ALLOWANCES, now_s)

    def spend(self, kind: str, now_s: float) -> bool:
        """Count one frame of a kind; False if there were too many."""
        most, per_s = ALLOWANCES[kind]
        left = min(self._left[kind] + per_s * (now_s - self._seen_s[kind]), most) - 1
        self._left[kind], self._seen_s[kind] = left, now_s
        return left >= 0

    def earn(self, kind: str, count: int) -> None:
        """Let as many more come."""
        self._left[kind] = min(self._left[kind] + count, ALLOWANCES[kind][0])
