"""The file of a UNIX socket, which anybody may remove or bind over: who listens behind it."""

from __future__ import annotations

import socket
import struct
from typing import Final

_CREDENTIALS: Final = struct.Struct("iII")


def listener_pid(sock: socket.socket) -> int:
    """The process that was the last to listen on it, or behind what it is connected to, perhaps dead by now."""
    found, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(found)


def is_listener(path: str, pid: int) -> bool:
    """Whether this process was the last that listened at `path`. One that is too busy to be asked is left alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        try:
            probe.connect(path)
            return listener_pid(probe) == pid
        except BlockingIOError:
            return True
        except OSError:
            return False
