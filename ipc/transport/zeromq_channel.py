"""Data channel over ZeroMQ, if the server is configured so; the alternative to data_channel.py.

Covers: options, addresses, identities, sending without blocking. Does not cover: requests in flight (the gateway's own
table is authoritative, never ZeroMQ).

    worker   ROUTER, binds `ipc://<runtime dir>/w<instance>.<generation>`, one per worker process
    gateway  DEALER, connects, identity `g<gateway>.<generation>`

IMMEDIATE=0: with 1 a DEALER whose peer disconnects drops replies that it has received and not yet delivered (seen: 20
of 20; with 0, none), and a reply sent before a worker's exit counts. The drawback, that messages sent while nobody is
connected reach the next process that binds the address, does not apply: no address is reused. HWM 0: the limits are
the gateway's own, in requests and bytes. ROUTER_MANDATORY: an unknown peer is an error, not a silent drop. ZMQ_FD is
edge-triggered and sends consume edges too: after every wake-up *and every send*, receive until nothing is left.

`send` hands a frame to libzmq's thread. If the process dies before that thread has written it, it is lost: a request
that was answered in the moment before a crash counts as begun (gateway/dispatch/retry_policy.py).
"""

from __future__ import annotations

import os
from typing import Final

import zmq

from mmsup.ipc.transport.control_channel import ChannelClosed

MAX_FRAME_BYTES: Final = 1 << 20
"""Larger than any frame (data_channel.py: FRAME_LIMIT_BYTES); ZeroMQ disconnects a peer that sends more."""


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    return sock


class ZmqWorkerChannel:
    """The worker's side, which binds."""

    is_edge_triggered: Final = True

    def __init__(self, path: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = _socket(self._context, zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        old = os.umask(0o077)  # libzmq makes the file with 777 & ~umask
        try:
            self._socket.bind(f"ipc://{path}")
        finally:
            os.umask(old)

    def fileno(self) -> int:
        """Readable when something may have happened; then call `receive` until None."""
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next (identity, frame), None if there is none. Multipart messages of another form are skipped."""
        # Checking first costs a third of the exception that receiving without a message raises.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
            if len(parts) == 2:
                return parts[0], parts[1]
        return None

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one gateway; False if there is no room now; ChannelClosed if it is not connected."""
        try:
            self._socket.send_multipart([identity, frame], zmq.DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                raise ChannelClosed from error
            raise
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Unbind and stop ZeroMQ's thread; messages not yet transmitted get this long."""
        self._socket.close(linger_ms)
        self._context.destroy(linger_ms)


class ZmqContext:
    """The ZeroMQ context of a gateway: one I/O thread for all its links."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)

    def connect(self, path: str, identity: bytes) -> ZmqGatewayChannel:
        """The channel to the worker bound at `path`; it connects in the background."""
        return ZmqGatewayChannel(_socket(self._context, zmq.DEALER), path, identity)

    def close(self) -> None:
        """Stop ZeroMQ's thread, after all channels were closed."""
        self._context.destroy(0)


class ZmqGatewayChannel:
    """The gateway's side of one link, which connects."""

    is_edge_triggered: Final = True

    def __init__(self, sock: zmq.Socket[bytes], path: str, identity: bytes) -> None:
        self._socket = sock
        sock.setsockopt(zmq.IMMEDIATE, 0)
        sock.setsockopt(zmq.IDENTITY, identity)
        sock.setsockopt(zmq.RECONNECT_IVL, 20)  # ms; until the first connection only: a worker is never reconnected
        sock.connect(f"ipc://{path}")

    def fileno(self) -> int:
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self) -> bytes | None:
        try:
            return self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def send(self, frame: bytes) -> bool:
        """Send one frame; False if it cannot be sent now: try again at the next event."""
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close; messages not yet transmitted are dropped."""
        self._socket.close(0)
