"""Control channel: one end of a SOCK_SEQPACKET pair for control messages, used by the keeper and all its descendants.

Both ends are inherited or passed, so no process has to find or authenticate another one, and a sandboxed worker needs
neither socket() nor connect(). The keeper holds a copy of the far end of each child: after the controller dies,
messages of the children wait in the socket buffer for its successor.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import failpoints
from mmsup.ipc.failpoints import failpoint

MESSAGE_LIMIT: Final = 192 * 1024
"""Bytes of one message; a socket buffer of the kernel's default size holds one. Larger configurations are refused."""
DESCRIPTOR_LIMIT: Final = 16
INT_BYTES: Final = array.array("i").itemsize
_RIGHTS_BYTES: Final = socket.CMSG_LEN(DESCRIPTOR_LIMIT * INT_BYTES)
_NO_SIGNAL: Final = int(socket.MSG_NOSIGNAL)  # as an int: an operation on enum members costs more than the system call
RETRY_ERRNOS: Final = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""The packet can be sent later: the socket buffer is full, or the kernel is short of some resource."""


class ChannelClosed(Exception):  # noqa: N818 - an ordinary end, not an error
    """The other side has closed; nothing more will arrive."""


class DescriptorsLost(OSError):  # noqa: N818 - says what has happened
    """The descriptor table is full: a message came without its descriptors. `data` is the message."""

    def __init__(self, data: bytes) -> None:
        super().__init__(errno.EMFILE, "no room for the descriptors of a message")
        self.data = data


class SeqpacketEnd:
    """What ControlChannel and DataChannel share: a socket that is never blocking, and sending packets on it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one packet; the kernel duplicates the descriptors. False if there is no room now."""
        try:
            if failpoints.armed:
                self._fail_send(descriptors)
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                self._socket.sendmsg([data], rights, _NO_SIGNAL)
            else:
                self._socket.send(data, _NO_SIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error
        except OSError as error:
            if error.errno in RETRY_ERRNOS:
                return False
            if self._socket.fileno() < 0:  # this end was closed, and whoever sends has not heard of it
                raise ChannelClosed from error
            raise
        return True

    def close(self) -> None:
        """Close this end. The other side still receives what was sent."""
        self._socket.close()

    def _fail_send(self, descriptors: Sequence[int]) -> None:
        raise NotImplementedError


class ControlChannel(SeqpacketEnd):
    """One end. Whoever creates it closes it."""

    @classmethod
    def pair(cls) -> tuple[ControlChannel, ControlChannel]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    @classmethod
    def from_fd(cls, fd: int) -> ControlChannel:
        """An inherited or received descriptor, which the channel now owns."""
        return cls(socket.socket(fileno=fd))

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        assert len(data) <= MESSAGE_LIMIT, f"a control message of {len(data)} bytes"
        return super().send(data, descriptors)

    def _fail_send(self, descriptors: Sequence[int]) -> None:
        failpoint("ipc.send_rights" if descriptors else "ipc.send")

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message and its descriptors, which the caller owns; None if none is waiting.

        DescriptorsLost if the descriptor table is full.
        """
        failpoint("ipc.receive")
        try:
            # socket.recv_fds of Python 3.11 drops its flags, and with them close-on-exec.
            data, ancillary, flags, _ = self._socket.recvmsg(MESSAGE_LIMIT, _RIGHTS_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # Told once, where the other side closed with messages unread, before what it had sent (unix(7)): its last
            # words would be lost.
            return self.receive()
        if not data:
            raise ChannelClosed
        descriptors = received_fds(ancillary)
        if descriptors or flags & socket.MSG_CTRUNC:
            _check_descriptors(data, descriptors, flags)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_fds(descriptors)
            return self.receive()  # a message over a limit is dropped
        return data, descriptors

    def detach(self) -> int:
        """Give the descriptor away; the object is closed afterwards."""
        return self._socket.detach()


def received_fds(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % INT_BYTES])
    return found.tolist()


def _check_descriptors(data: bytes, descriptors: Sequence[int], flags: int) -> None:
    """DescriptorsLost, with all of them closed, if the kernel dropped some because our descriptor table is full."""
    try:
        failpoint("ipc.receive_rights")
    except OSError as error:
        close_fds(descriptors)
        raise DescriptorsLost(data) from error
    if flags & socket.MSG_CTRUNC and len(descriptors) < DESCRIPTOR_LIMIT:
        close_fds(descriptors)
        raise DescriptorsLost(data)


def close_fds(descriptors: Sequence[int]) -> None:
    """Close them all, also those that are not open any more."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
