"""The states of one client connection, and the time limits of all connections.

state    who receives the bytes that arrive                  next
idle     nobody: they start a request                        body, work, turn, slow
body     the kernel writes them to their place in memory     work (body complete or refused)
work     buffered, at most PENDING_LIMIT_BYTES               idle or drain (response written)
turn     as in work                                          idle (the fair queue starts the request)
drain    as in work                                          idle (the socket has taken the response)
linger   discarded: the rest of a refused body               the client closes, or LINGER_S
slow     aiohttp's handler                                   idle (it is idle and holds no part of a request)
"""

from __future__ import annotations

import enum
from typing import Final

IDLE_S: Final = 75.0
"""Between requests."""
LINGER_S: Final = 5.0
"""How long the rest of a refused body is read, so that the client receives the response instead of a reset."""


class ConnectionState(enum.Enum):
    IDLE = "idle"
    BODY = "body"
    TURN = "turn"
    WORK = "work"
    DRAIN = "drain"
    SLOW = "slow"
    LINGER = "linger"
    CLOSED = "closed"
