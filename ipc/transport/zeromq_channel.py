"""The data link over ZeroMQ, where the server is configured so: raw descriptors, one frame per loop turn.

Covers: options, addresses, identities, sending what fits. Does not cover: what is in flight; ZeroMQ is never the
truth about that, the gateway's ledger is.

    worker   ROUTER, binds `ipc://<runtime dir>/w<instance>.<generation>`, one per life
    gateway  DEALER, connects, identity `g<gateway>.<generation>`

IMMEDIATE=0: with 1 a DEALER whose peer disconnects throws away the replies that it has received and not yet handed
over (seen: 20 of 20; with 0, none), and a reply that came before a death counts. The other side of it, that work sent
into a gap reaches whoever binds the address next, cannot happen here: no address is used twice. HWM 0: bounds are ours,
in requests and bytes. ROUTER_MANDATORY: an unknown peer is an error, not a silent drop. ZMQ_FD is edge-triggered and
sends consume edges too: after every wake *and every send*, read until dry.
"""

from __future__ import annotations

import os
from typing import Final

import zmq

from mmsup.ipc.transport.control_channel import ChannelClosed

MAX_FRAME_BYTES: Final = 64 << 20
"""Above any frame of ours (inline tensors are small); a peer that sends more is cut off by ZeroMQ."""


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    return sock


class ZmqWorkerChannel:
    """The bound side."""

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
        """The next (identity, frame), or None when dry. Multipart messages of another form are skipped."""
        # Asking first costs a third of the exception that receiving from a dry socket raises.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            parts = self._socket.recv_multipart(zmq.DONTWAIT)
            if len(parts) == 2:
                return parts[0], parts[1]
        return None

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one gateway; False if it does not take it now; Closed if it is not there."""
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
        """Unbind and end ZeroMQ's thread; what was sent and is not yet on its way gets this long."""
        self._socket.close(linger_ms)
        self._context.destroy(linger_ms)


class ZmqContext:
    """A gateway's ZeroMQ context: one I/O thread for all its links."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 4096)

    def connect(self, path: str, identity: bytes) -> ZmqGatewayChannel:
        """A link to the worker bound at `path`; it connects by itself."""
        return ZmqGatewayChannel(_socket(self._context, zmq.DEALER), path, identity)

    def close(self) -> None:
        """End ZeroMQ's thread; all links are closed before."""
        self._context.destroy(0)


class ZmqGatewayChannel:
    """The connecting side of one link."""

    is_edge_triggered: Final = True

    def __init__(self, sock: zmq.Socket[bytes], path: str, identity: bytes) -> None:
        self._socket = sock
        sock.setsockopt(zmq.IMMEDIATE, 0)
        sock.setsockopt(zmq.IDENTITY, identity)
        sock.setsockopt(zmq.RECONNECT_IVL, 20)  # ms; only until the first success: a life is never reconnected
        sock.connect(f"ipc://{path}")

    def fileno(self) -> int:
        """Readable when something may have happened; then call `receive` until None."""
        return int(self._socket.getsockopt(zmq.FD))

    def receive(self) -> bytes | None:
        """The next frame, or None when dry."""
        try:
            return self._socket.recv(zmq.DONTWAIT)
        except zmq.Again:
            return None

    def send(self, frame: bytes) -> bool:
        """Send one frame; False if there is no peer to take it now: keep it and try at the next event."""
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close; what was not sent is forgotten here, not in the ledger."""
        self._socket.close(0)
