"""The data link over a socket pair: one packet a loop turn, in the hands of whoever was given an end.

Covers: sending what fits, receiving, descriptors of extents. Does not cover: what is in flight; who makes the pair.

Why not ZeroMQ (channel.py), which this replaced as the usual way: each of its frames passes through a thread of its own
at both sides. One request and its reply, two processes on one core of a 2-core virtual machine (kernel 6.18, libzmq
4.3.5): 84 µs and 89 µs of CPU by DEALER and ROUTER, 15 µs and 17 µs by this. `benchmarks/alone.py` measures both anew.

The kernel's buffer is the only queue. When it is full `send` says so, and the descriptor becomes writable when there is
room again. EOF is a hint that the other side is gone; a pidfd is the proof.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.transport.control_channel import RETRY_ERRNOS, ChannelClosed, close_fds, received_fds

FRAME_LIMIT_BYTES: Final = 384 * 1024
"""Of one packet. Above any one record: 64 inline tensors, parameters, words."""
BUFFER_BYTES: Final = 212_992
"""What we ask the kernel for at each end, its own default limit (net.core.wmem_max); it doubles that. A packet must fit
with the kernel's bookkeeping."""
_ROOM: Final = socket.CMSG_LEN(array.array("i").itemsize * 4)
# As plain numbers: an operation on members of an enum takes longer than the system call.
_QUIETLY: Final = int(socket.MSG_NOSIGNAL)
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)


class DataChannel:
    """One end. Never blocks."""

    is_edge_triggered: Final = False

    def __init__(self, fd: int) -> None:
        """`fd` is its own from now on."""
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._packet = memoryview(bytearray(FRAME_LIMIT_BYTES))

    def fileno(self) -> int:
        """Its descriptor, for a poller."""
        return self._socket.fileno()

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send one frame; False if there is no room now; Closed if nobody is there. Descriptors are duplicated."""
        try:
            failpoint("ipc.pair_send")
            if descriptors:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                self._socket.sendmsg([frame], rights, _QUIETLY)
            else:
                self._socket.send(frame, _QUIETLY)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error
        except OSError as error:
            if error.errno in RETRY_ERRNOS:
                return False
            raise
        return True

    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None if none waits; Closed at the end. Descriptors are closed."""
        try:
            size = self._socket.recv_into(self._packet)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ChannelClosed from error
        if not size:
            raise ChannelClosed
        failpoint("ipc.pair_receive")
        return self._packet[:size]

    def receive_with_fds(self) -> tuple[memoryview, list[int]] | None:
        """The same with the descriptors that came, which are the caller's now."""
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into([self._packet], _ROOM, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError as error:
            raise ChannelClosed from error
        if not size:
            raise ChannelClosed
        descriptors = received_fds(ancillary) if ancillary else []
        if flags & _CUT:
            close_fds(descriptors)
            return self.receive_with_fds()  # a peer that breaks the bound loses its packet
        return self._packet[:size], descriptors

    def close(self) -> None:
        """Close this end; what the other side has not received is lost to it only if it was never sent."""
        self._socket.close()
