"""Which process listens behind the file of a UNIX socket: the file may have been removed or replaced."""

from __future__ import annotations

import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("iII")


def listener_pid(sock: socket.socket) -> int:
    """The pid that called listen() on the socket, or on the one that it is connected to; it may have exited."""
    found, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(found)


def is_listener(path: str, pid: int) -> bool:
    """Whether this process listens at `path`. True also if its queue is full, so that it cannot be checked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            probe.connect(path)
            return listener_pid(probe) == pid
        except BlockingIOError:
            return True
        except OSError:
            return False
