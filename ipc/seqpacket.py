"""A control channel: one end of a SOCK_SEQPACKET pair, whole messages with descriptors, never blocking.

Both ends are inherited or passed, so nobody has to be found, let in or checked, and a locked worker needs neither
socket() nor connect(). The keeper keeps a copy of the far end of each child: when the brain dies, what the children
say meanwhile waits here for the next one.

Owner: whoever made the object closes it. A full buffer is `False` from send, never a wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final

MESSAGE_LIMIT: Final = 192 * 1024
"""Largest message; the kernel's default buffer holds one of this size. Configurations beyond it are refused early."""
DESCRIPTOR_LIMIT: Final = 16


class Closed(Exception):  # noqa: N818 - an ordinary end, not an error
    """The other side is gone; nothing will come any more."""


class Seqpacket:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature

    @classmethod
    def pair(cls) -> tuple[Seqpacket, Seqpacket]:
        """Two connected ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def of_descriptor(cls, fd: int) -> Seqpacket:
        """The end that came as an inherited or passed descriptor, which it now owns."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Its descriptor, for a poller."""
        return self._socket.fileno()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one message; False if the buffer is full; Closed if nobody is there. Descriptors are duplicated."""
        assert len(data) <= MESSAGE_LIMIT, f"a control message of {len(data)} bytes"
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], list(descriptors), socket.MSG_NOSIGNAL)
            else:
                self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error
        return True

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message with its descriptors (the caller's now), None if none waits, Closed at the end."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._socket, MESSAGE_LIMIT, DESCRIPTOR_LIMIT, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise Closed from error
        if not data:
            raise Closed
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(descriptors)
            return self.receive()  # a peer that breaks the bound loses its message
        return data, descriptors

    def detach(self) -> int:
        """Give the descriptor away; the object is then closed."""
        return self._socket.detach()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
