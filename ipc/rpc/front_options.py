"""What the gRPC front process is started with: the first of its arguments, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from mmsup.ipc.rpc.keepalive import RpcKeepalive


@dataclass(frozen=True, slots=True)
class RpcFrontOptions:
    socket: str
    """Path on which the gateways accept its connections."""
    folder: str
    """Where it may make sockets of its own."""
    gateways: int
    """How many connections to them it holds."""
    max_message_bytes: int
    keepalive: RpcKeepalive
