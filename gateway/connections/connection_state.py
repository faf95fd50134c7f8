"""The states of one client's connection: who has the bytes that come.

state    who has the bytes                            ends with
idle     nobody: the next ones begin a request        body, work, slow
body     the kernel writes them where they shall lie  work (the last has come), a refusal
work     kept, at most REST_LIMIT_BYTES of them       idle or drain (the reply is made)
turn     as in work                                   idle (it is its turn: turns.py)
drain    as in work                                   idle (the socket has taken the reply)
linger   nobody: the rest of a refused body           the client's end, or LINGER_S
slow     aiohttp's handler                            idle (it is idle and holds no half of a request)
"""

from __future__ import annotations

import enum


class ConnectionState(enum.Enum):
    """Who has the bytes; see the table."""

    IDLE = "idle"
    BODY = "body"
    TURN = "turn"
    WORK = "work"
    DRAIN = "drain"
    SLOW = "slow"
    LINGER = "linger"
    CLOSED = "closed"
