"""Listeners of one gateway: each of the keeper's sockets, served until the end.

Who calls: `__main__`, once for each socket it inherited, and `close` after the drain.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mmsup.gateway import self_test
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.acceptor import ConnectionAcceptor
from mmsup.gateway.connections.aiohttp_connection import HttpListener
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.fast_connection import IDLE_S
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.counters import CounterTable

RETIRE_MARGIN_S: Final = 1.0
"""Beyond the time of an idle connection: whoever is still here after a retirement has never said anything."""
_log = logging.getLogger("mmsup.gateway")


class GatewayServer:
    """The HTTP face of a gateway: its application, its listeners, and the thread that reads large documents."""

    def __init__(self, backend: Router, tallies: Sequence[CounterTable], place: int) -> None:
        # Reading a large JSON text takes milliseconds, which are not the loop's; one at a time bounds its memory.
        self._parser_executor = ThreadPoolExecutor(1, "documents")
        self._parser_executor.submit(int)  # the thread is there from the start, and not only once a large text came
        self._router = backend
        self.counters = RequestCounters(tallies, place)
        self.infer_handler = InferHandler(backend, self.counters, self._parser_executor)
        self.app = HttpApp(self.infer_handler)
        self._context: ConnectionContext | None = None
        self._listening: list[tuple[ConnectionAcceptor, HttpListener]] = []
        self._retired_s: float | None = None

    async def start(self, wanted: str) -> None:
        """Decide, before the first `listen`, whether clients meet the front: it is wanted and passes its own test."""
        fault = await self_test.run_self_test(self.infer_handler.router) if wanted == "fast" else ""
        if fault:
            _log.warning("the fast front is not used, all is served by aiohttp: %s", fault)
        elif wanted == "fast":
            self._context = ConnectionContext(self.infer_handler, asyncio.get_running_loop())
        self.counters.set_front_fallback(bool(fault))

    async def listen(self, sock: socket.socket, *, metrics_only: bool = False) -> None:
        """Serve on this listening socket, which is ours from now on."""
        handler = self.app.serve_metrics if metrics_only else self.app.serve
        listener = HttpListener(handler, is_local=is_local(sock), shared=None if metrics_only else self._context)
        acceptor = ConnectionAcceptor(sock, listener)
        await acceptor.start()
        self._listening.append((acceptor, listener))

    @property
    def open_requests(self) -> int:
        """Inferences that are with us."""
        return self._router.open_requests

    def on_heartbeat(self) -> None:
        """What is looked after at every beat."""
        backend = self._router
        if backend.retired:
            self._retire(time.monotonic())
        backend.close_drained_links()
        backend.release_unused_memory(time.monotonic())
        self.counters.set_current(backend.open_by_model, backend.memory_used_bytes, backend.quota.held_bytes)

    @property
    def is_finished(self) -> bool:
        """Whether it was retired and has no connection any more."""
        return self._retired_s is not None and all(listener.is_empty for _, listener in self._listening)

    def _retire(self, now_s: float) -> None:
        """Accept no more. A connection that is idle keeps its time to become the sender of one more request, which is
        answered and told that it was the last: so closing it is nothing that a client had not to expect anyway."""
        if self._retired_s is None:
            self._retired_s = now_s
            for acceptor, _ in self._listening:
                acceptor.close()
            failpoint("gateway.retired")
        elif now_s >= self._retired_s + IDLE_S + RETIRE_MARGIN_S:
            for _, listener in self._listening:
                listener.pre_shutdown()

    async def close(self, grace_s: float) -> None:
        """Accept no more, let each connection end what it is at for at most `grace_s`, then close it."""
        for acceptor, listener in self._listening:
            acceptor.close()
            listener.pre_shutdown()
        for _, listener in self._listening:
            await listener.shutdown(grace_s)
        self._listening.clear()
        self._parser_executor.shutdown(cancel_futures=True)
        self.counters.set_current({}, 0, 0)
        self.counters.set_front_fallback(False)


def is_local(sock: socket.socket) -> bool:
    """Whether only this machine can reach a listening socket."""
    if sock.family == socket.AF_UNIX:
        return True
    try:
        return ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    except ValueError:
        return False
