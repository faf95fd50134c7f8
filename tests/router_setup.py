"""A router with one worker, both driven by the test; at the end every request and slot must have been freed."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
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
    """A router with one worker."""

    router: Router
    hub: ZmqContext
    folder: Path
    described: ModelSpec
    peer: WorkerPeer
    link: WorkerLink

    def second(self, generation: int = 2) -> WorkerPeer:
        """The next generation of the worker."""
        zeromq = self.peer.end is not None
        peer = WorkerPeer(self.folder, self.described, generation=generation, zeromq=zeromq)
        peer.link(self.router, self.hub)
        return peer


@contextlib.asynccontextmanager
async def router_setup(
    *, arena_bytes: int = 64 << 20, grace_s: float = 10.0, zeromq: bool = False, **fields: object
) -> AsyncIterator[RouterSetup]:
    described = spec(**fields)  # type: ignore[arg-type] # fields of ModelSpec
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder, ThreadPoolExecutor(1) as executor:
        router = backend(executor, arena_bytes=arena_bytes, grace_s=grace_s)
        router.routes.put(route(described))
        hub = ZmqContext()
        peer = WorkerPeer(Path(folder), described, zeromq=zeromq)
        try:
            yield RouterSetup(router, hub, Path(folder), described, peer, peer.link(router, hub))
        except BaseException:  # hypothesis ends an example that way too
            router.links.close_all()
            hub.close()
            peer.close()
            raise
        assert router.admission.open_requests == 0
        for link in list(router.links.by_worker.values()):
            assert not link.reserved_requests, "a closed request is still reserved"
            assert link.memory.requests.used_bytes == link.memory.results.used_bytes == 0, "a slot was not freed"
            link.close()
        assert router.memory_quota.held_bytes == 0
        hub.close()
        peer.close()


async def infer_bytes(router: Router, data: bytes, timeout_s: float = 20.0) -> bytes:
    """One request with `data` in its buffer; the bytes of its only output."""
    with closing(await router.open("m", "", time.monotonic_ns() + int(timeout_s * 1e9))) as request:
        buffer = await request.allocate(len(data))
        buffer[:] = data
        result = await request.resume(InferenceJob([InputTensor("x", "UINT8", (len(data),), 0, len(data))], [], {}))
        return bytes(result.outputs[0].data)


def with_router(test: Callable[[RouterSetup], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            async with router_setup(**options) as built:  # type: ignore[arg-type] # options of router_setup()
                await test(built)

    asyncio.run(run())


async def refused(task: Awaitable[object]) -> MmsupError:
    with pytest.raises(MmsupError) as caught:
        await task
    return caught.value
