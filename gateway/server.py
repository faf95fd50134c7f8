"""The servers of a gateway, HTTP and gRPC, and the listening sockets that the keeper handed to it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from mmsup.gateway import self_test
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.client_memory.region_table import RegionTable
from mmsup.gateway.composition.composer import Composer
from mmsup.gateway.composition.ensemble_router import EnsembleRouter
from mmsup.gateway.composition.worker_calls import attach_calls
from mmsup.gateway.connections.acceptor import ConnectionAcceptor
from mmsup.gateway.connections.connection_state import IDLE_S
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.http.host_policy import ANY_HOST, HostPolicy, listener_policy
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.controller_status import CallController
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.rpc.listener import RpcListener
from mmsup.gateway.rpc.relay.relay_listener import RelayListener
from mmsup.gateway.rpc.server import RpcServer
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.counters import CounterTable

RETIRE_MARGIN_S: Final = 1.0
"""Beyond the time of an idle connection: a connection that is still open after that has never sent a request."""
STREAM_RETIRE_S: Final = 10.0
"""How long streams of gRPC in which nothing goes on may stay: their clients are told to open others."""
SWEEP_INTERVAL_S: Final = 5.0
"""Between two searches for unused memory and expired poison entries."""
Listener = HttpListener | RpcListener | RelayListener
_log = logging.getLogger("mmsup.gateway")


class GatewayServer:
    def __init__(
        self,
        router: Router,
        call_controller: CallController,
        tables: Sequence[CounterTable],
        seat: int,
        regions: RegionTable | None = None,
    ) -> None:
        # Parsing a large JSON body takes milliseconds, too long for the loop. One at a time bounds its memory.
        self._parser_executor = ThreadPoolExecutor(1, "parser")
        self._parser_executor.submit(int)  # starts the thread now and not at the first large body
        self._router = router
        self.counters = RequestCounters(tables, seat)
        self.counters.models = router.routes
        cold_starts = router.waiters.cold_starts
        cold_starts.on_waited, cold_starts.on_started = self.counters.record_cold_wait, self.counters.record_cold_start
        self._infer_handler = InferHandler(router, self.counters, self._parser_executor, regions)
        composer = Composer(self._infer_handler)
        router.links.on_added = partial(attach_calls, composer)
        if isinstance(router, EnsembleRouter):
            router.composer = composer
        self._app = HttpApp(self._infer_handler, call_controller)
        self._rpc = RpcServer(self._infer_handler, call_controller)
        self._context: ConnectionContext | None = None
        """Of fast connections; None if aiohttp serves all requests."""
        self._listening: list[tuple[ConnectionAcceptor, Listener]] = []
        self._retired_s: float | None = None
        self._next_sweep_s = 0.0

    async def start(self, front: str) -> None:
        """Decide on the fast path: used if it is configured and passes its self-test. Called once before `listen`."""
        fault = await self_test.run_self_test(self._router) if front == "fast" else ""
        if fault:
            _log.warning("the fast path is not used, aiohttp serves all requests: %s", fault)
        elif front == "fast":
            self._context = ConnectionContext(self._infer_handler, asyncio.get_running_loop())
        self.counters.set_front_fallback(bool(fault))

    async def listen(self, sock: socket.socket, *, metrics_only: bool = False) -> None:
        """Serve on this listening socket, and own it."""
        handler = self._app.serve_metrics if metrics_only else self._app.serve
        hosts = _host_policy(sock, self._router.configuration.allow_hosts)
        context = None if metrics_only else self._context
        listener = HttpListener(handler, is_local=is_local(sock), hosts=hosts, context=context)
        await self._accept(sock, listener)

    async def listen_rpc(self, sock: socket.socket) -> None:
        """Serve gRPC on this listening socket, and own it."""
        await self._accept(
            sock, RpcListener(self._rpc, self._router.configuration.grpc_keepalive, is_local=is_local(sock))
        )

    async def listen_relay(self, sock: socket.socket) -> None:
        """Take calls of the gRPC front process on this listening socket, and own it."""
        await self._accept(sock, RelayListener(self._rpc.open_stream))

    async def _accept(self, sock: socket.socket, listener: Listener) -> None:
        acceptor = ConnectionAcceptor(sock, listener)
        await acceptor.start()
        self._listening.append((acceptor, listener))

    def on_heartbeat(self) -> None:
        router, now_s = self._router, time.monotonic()
        if router.status.retired:
            self._retire(now_s)
        router.links.close_drained(keeps=self._infer_handler.sequences.keeps)
        self._rpc.health.on_heartbeat()
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + SWEEP_INTERVAL_S
            router.poison_requests.expire(now_s)
            router.links.release_unused_memory(now_s)
            for _, listener in self._listening:
                if isinstance(listener, RpcListener | RelayListener):
                    listener.on_tick(now_s)
        held_bytes = router.memory_quota.held_bytes
        self.counters.set_current(router.admission.requests_by_model, router.links.used_bytes(), held_bytes)
        self.counters.set_waiting(router.waiters.cold_starts.admission.requests_by_model)
        self.counters.set_pending(router.pending_requests())

    @property
    def is_finished(self) -> bool:
        """Whether this gateway was retired and has no connection any more."""
        return self._retired_s is not None and all(listener.is_empty for _, listener in self._listening)

    def _retire(self, now_s: float) -> None:
        """Accept no more connections. An idle one may send one more request within its keep-alive time; the response
        closes it, so no client sees a close that it had not to expect anyway."""
        if self._retired_s is None:
            self._retired_s = now_s
            for acceptor, listener in self._listening:
                acceptor.close()
                if isinstance(listener, RpcListener | RelayListener):
                    listener.retire()
            failpoint("gateway.retired")
            return
        if now_s >= self._retired_s + STREAM_RETIRE_S:
            for _, listener in self._listening:
                if isinstance(listener, RpcListener | RelayListener):
                    listener.end_idle_streams()
        if now_s >= self._retired_s + IDLE_S + RETIRE_MARGIN_S:
            for _, listener in self._listening:
                listener.pre_shutdown()

    async def close(self, grace_s: float) -> None:
        """Accept no more connections, let each finish its request for at most `grace_s`, then close it."""
        for acceptor, listener in self._listening:
            acceptor.close()
            listener.pre_shutdown()
        for _, listener in self._listening:
            await listener.shutdown(grace_s)
        self._listening.clear()
        self._parser_executor.shutdown(cancel_futures=True)
        self.counters.set_current({}, 0, 0)
        self.counters.set_waiting({})
        self.counters.set_pending({})
        self.counters.set_front_fallback(False)


def _host_policy(sock: socket.socket, allowed: Sequence[str]) -> HostPolicy:
    if sock.family == socket.AF_UNIX:
        return ANY_HOST
    address = str(sock.getsockname()[0])
    return listener_policy(address, socket.gethostname(), allowed, is_loopback=is_local(sock))


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    if sock.family == socket.AF_UNIX:
        return True
    try:
        return ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    except ValueError:
        return False
