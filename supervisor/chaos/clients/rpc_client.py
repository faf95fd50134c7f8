"""A gRPC client on the grpcio library, which is imported when it is made. Nothing is retried.

An error without the server's own code is a connection that broke: grpcio made it, or a front whose gateway had gone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mmsup.supervisor.chaos.clients.http_client import ConnectionReset, HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.rpc_protocol import CODE_TRAILER

_OPTIONS: Final = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class RpcClient:
    """A client of one address (HOST:PORT), with one connection."""

    def __init__(self, address: str) -> None:
        import grpc.aio  # noqa: PLC0415 - only for runs with gRPC

        self._library: Any = grpc  # without types
        self._address = address
        self._channel: Any = None  # grpc.aio.Channel

    async def send(self, call: HttpCall, number: int = 0) -> HttpReply:  # noqa: ARG002 - as HttpClient
        """Send a message to the method `call.path`. The reply's status is that of gRPC, 0 if all is well; else the
        server's own code is in its headers, and the text in its body. ConnectionReset if the server did not answer."""
        if self._channel is None:
            self._channel = self._library.aio.insecure_channel(self._address, options=_OPTIONS)
        try:
            body = await self._channel.unary_unary(call.path)(call.body, wait_for_ready=True)
        except self._library.aio.AioRpcError as error:
            code = dict(error.trailing_metadata() or ()).get(CODE_TRAILER)
            if code is None:
                raise ConnectionReset(f"{error.code().name}: {error.details()}") from None
            return HttpReply(error.code().value[0], {CODE_TRAILER: str(code)}, (error.details() or "").encode())
        return HttpReply(0, {}, body)

    async def close(self) -> None:
        """Close the connection; the next call makes another one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
            await asyncio.sleep(0)
