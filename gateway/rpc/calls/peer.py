"""Who is at the other end of a connection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RpcPeer:
    is_local: bool
    """Only this machine can reach its listener."""
    uid: int | None = None
    """Of its process, on a UNIX socket; set when the connection is made."""
