"""A gateway's backend with one worker, both in a test's hands; at the end every request and slot has come back."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.worker_peer import WorkerPeer, backend, route, spec
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.protocol.inference_job import InferenceJob, InputTensor
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.zeromq_channel import ZmqContext


@dataclass
class RouterSetup:
    """A backend with one worker, both in the test's hands."""

    router: Router
    hub: ZmqContext
    folder: Path
    described: ModelSpec
    peer: WorkerPeer
    link: WorkerLink

    def second(self, generation: int = 2) -> WorkerPeer:
        """The next life of the worker."""
        zeromq = self.peer.end is not None
        peer = WorkerPeer(self.folder, self.described, generation=generation, zeromq=zeromq)
        peer.link(self.router, self.hub)
        return peer


@contextlib.asynccontextmanager
async def router_setup(
    *, arena_bytes: int = 64 << 20, grace_s: float = 10.0, zeromq: bool = False, **fields: object
) -> AsyncIterator[RouterSetup]:
    described = spec(**fields)  # type: ignore[arg-type] # fields of ModelSpec, by the tests below
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder, ThreadPoolExecutor(1) as executor:
        made = backend(executor, arena_bytes=arena_bytes, grace_s=grace_s)
        made.routes.put(route(described))
        hub = ZmqContext()
        peer = WorkerPeer(Path(folder), described, zeromq=zeromq)
        try:
            yield RouterSetup(made, hub, Path(folder), described, peer, peer.link(made, hub))
        except BaseException:  # hypothesis ends an example that way too
            for link in list(made.links.values()):
                link.close()
            hub.close()
            peer.close()
            raise
        assert made.open_requests == 0
        for link in list(made.links.values()):
            assert not link.reserved_requests, "a request that left is still expected"
            assert link.memory.requests.used_bytes == link.memory.results.used_bytes == 0, "a slot did not come back"
            link.close()
        assert made.quota.held_bytes == 0
        hub.close()
        peer.close()


async def infer_bytes(to: Router, data: bytes, timeout_s: float = 20.0) -> bytes:
    """One request with `data` in its space; the bytes of its only output."""
    async with await to.open("m", "", time.monotonic_ns() + int(timeout_s * 1e9)) as exchange:
        space = await exchange.allocate(len(data))
        space[:] = data
        outcome = await exchange.infer(InferenceJob([InputTensor("x", "UINT8", (len(data),), 0, len(data))], [], {}))
        return bytes(outcome.outputs[0].data)


def with_router(test: Callable[[RouterSetup], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            async with router_setup(**options) as built:  # type: ignore[arg-type] # options of house()
                await test(built)

    asyncio.run(run())


async def refused(task: Awaitable[object]) -> MmsupError:
    with pytest.raises(MmsupError) as caught:
        await task
    return caught.value
