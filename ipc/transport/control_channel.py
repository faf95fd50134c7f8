"""A control channel: one end of a SOCK_SEQPACKET pair, whole messages with descriptors, never blocking.

Both ends are inherited or passed, so nobody has to be found, let in or checked, and a locked worker needs neither
socket() nor connect(). The keeper keeps a copy of the far end of each child: when the brain dies, what the children
say meanwhile waits here for the next one.

Owner: whoever made the object closes it. A full buffer is `False` from send, never a wait.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from mmsup.ipc.failpoints import failpoint

MESSAGE_LIMIT: Final = 192 * 1024
"""Largest message; the kernel's default buffer holds one of this size. Configurations beyond it are refused early."""
DESCRIPTOR_LIMIT: Final = 16
_INT_BYTES: Final = array.array("i").itemsize
_RIGHTS_BYTES: Final = socket.CMSG_LEN(DESCRIPTOR_LIMIT * _INT_BYTES)
RETRY_ERRNOS: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""Why a packet cannot be sent now and can be later: our buffer is full, or the kernel is short of something."""


class ChannelClosed(Exception):  # noqa: N818 - an ordinary end, not an error
    """The other side is gone; nothing will come any more."""


class ControlChannel:
    """One end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature

    @classmethod
    def pair(cls) -> tuple[ControlChannel, ControlChannel]:
        """Two connected ends."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def from_fd(cls, fd: int) -> ControlChannel:
        """The end that came as an inherited or passed descriptor, which it now owns."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Its descriptor, for a poller."""
        return self._socket.fileno()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one message; False if there is no room now; Closed if nobody is there. Descriptors are duplicated."""
        assert len(data) <= MESSAGE_LIMIT, f"a control message of {len(data)} bytes"
        try:
            failpoint("ipc.send_rights" if descriptors else "ipc.send")
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error
        except OSError as error:
            if error.errno in RETRY_ERRNOS:
                return False
            raise
        return True

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message with its descriptors (the caller's now), None if none waits, Closed at the end.

        OSError if we have no room for its descriptors: the message is lost then, and what it said must be asked anew.
        """
        failpoint("ipc.receive")
        try:
            # socket.recv_fds of 3.11 drops its flags, and with them close-on-exec.
            data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_LIMIT, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        descriptors = received_fds(ancillary)
        if descriptors or flags & socket.MSG_CTRUNC:
            _check_room(descriptors, flags)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_fds(descriptors)
            return self.receive()  # a peer that breaks a bound loses its message
        return data, descriptors

    def detach(self) -> int:
        """Give the descriptor away; the object is then closed."""
        return self._socket.detach()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came with a message."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _INT_BYTES])
    return found.tolist()


def _check_room(descriptors: Sequence[int], flags: int) -> None:
    """OSError, with all of them closed, if the kernel has cut them short for want of room in our table."""
    try:
        failpoint("ipc.receive_rights")
        if flags & socket.MSG_CTRUNC and len(descriptors) < DESCRIPTOR_LIMIT:
            raise OSError(errno.EMFILE, "no room for the descriptors of a message")
    except OSError:
        close_fds(descriptors)
        raise


def close_fds(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
