"""Data channel: one end of a SOCK_SEQPACKET pair between a gateway and a worker, one packet per event-loop iteration.

Why not ZeroMQ (zeromq_channel.py), which this replaced as the default: each ZeroMQ frame passes through an I/O thread
on both sides. CPU of one request and its reply, two processes on one core of a 2-core virtual machine (kernel 6.18,
libzmq 4.3.5): 84 and 89 µs by DEALER and ROUTER, 15 and 17 µs by this. `benchmarks/alone.py` measures both again.

The kernel's socket buffer is the only queue. When it is full `send` returns False, and the descriptor becomes writable
once there is room. EOF is a hint that the other side has exited; a pidfd is the proof.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from mmsup.ipc import failpoints
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.transport.control_channel import INT_BYTES, ChannelClosed, SeqpacketEnd, close_fds, received_fds

FRAME_LIMIT_BYTES: Final = 384 * 1024
"""Bytes of one packet; larger than any single record (64 inline tensors, parameters, signature)."""
BUFFER_BYTES: Final = 212_992
"""SO_SNDBUF of each end: the kernel's default limit (net.core.wmem_max), which it doubles. A packet must fit in it
together with the kernel's bookkeeping."""
_RIGHTS_BYTES: Final = socket.CMSG_LEN(INT_BYTES * 4)
# As ints: an operation on enum members costs more than the system call.
_CLOSE_ON_EXEC: Final = int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)


class DataChannel(SeqpacketEnd):
    is_edge_triggered: Final = False

    def __init__(self, fd: int) -> None:
        """The channel owns `fd` from now on."""
        super().__init__(socket.socket(fileno=fd))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._packet = memoryview(bytearray(FRAME_LIMIT_BYTES))

    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None if none is waiting. Its descriptors are closed."""
        try:
            size = self._socket.recv_into(self._packet)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return self.receive()  # told once, before what the other side had sent (control_channel.py)
        if not size:
            raise ChannelClosed
        if failpoints.armed:
            failpoint("ipc.pair_receive")
        return self._packet[:size]

    def receive_with_fds(self) -> tuple[memoryview, list[int]] | None:
        """The next frame, and its descriptors, which the caller owns."""
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into([self._packet], _RIGHTS_BYTES, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return self.receive_with_fds()  # as above
        if not size:
            raise ChannelClosed
        descriptors = received_fds(ancillary) if ancillary else []
        if flags & _TRUNCATED:
            close_fds(descriptors)
            return self.receive_with_fds()  # a packet over the limit is dropped
        return self._packet[:size], descriptors

    def _fail_send(self, descriptors: Sequence[int]) -> None:  # noqa: ARG002 - as the base class has it
        failpoint("ipc.pair_send")
