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
from mmsup.gateway.dispatch.router import Backend
from mmsup.gateway.dispatch.worker_link import Link
from mmsup.gateway.protocol.inference_job import Given, Run
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.zeromq_channel import Hub


@dataclass
class House:
    """A backend with one worker, both in the test's hands."""

    backend: Backend
    hub: Hub
    folder: Path
    described: ModelSpec
    peer: WorkerPeer
    link: Link

    def second(self, generation: int = 2) -> WorkerPeer:
        """The next life of the worker."""
        zeromq = self.peer.end is not None
        peer = WorkerPeer(self.folder, self.described, generation=generation, zeromq=zeromq)
        peer.link(self.backend, self.hub)
        return peer


@contextlib.asynccontextmanager
async def house(
    *, arena_bytes: int = 64 << 20, grace_s: float = 10.0, zeromq: bool = False, **fields: object
) -> AsyncIterator[House]:
    described = spec(**fields)  # type: ignore[arg-type] # fields of ModelSpec, by the tests below
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder, ThreadPoolExecutor(1) as executor:
        made = backend(executor, arena_bytes=arena_bytes, grace_s=grace_s)
        made.routes.put(route(described))
        hub = Hub()
        peer = WorkerPeer(Path(folder), described, zeromq=zeromq)
        try:
            yield House(made, hub, Path(folder), described, peer, peer.link(made, hub))
        except BaseException:  # hypothesis ends an example that way too
            for link in list(made.links.values()):
                link.finish()
            hub.close()
            peer.close()
            raise
        assert made.open_requests == 0
        for link in list(made.links.values()):
            assert not link.claims, "a request that left is still expected"
            assert link.arena.requests.used_bytes == link.arena.results.used_bytes == 0, "a slot did not come back"
            link.finish()
        assert made.quota.held_bytes == 0
        hub.close()
        peer.close()


async def ask(to: Backend, data: bytes, timeout_s: float = 20.0) -> bytes:
    """One request with `data` in its space; the bytes of its only output."""
    async with await to.open("m", "", time.monotonic_ns() + int(timeout_s * 1e9)) as exchange:
        space = await exchange.space(len(data))
        space[:] = data
        outcome = await exchange.infer(Run([Given("x", "UINT8", (len(data),), 0, len(data))], [], {}))
        return bytes(outcome.outputs[0].data)


def in_house(test: Callable[[House], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            async with house(**options) as built:  # type: ignore[arg-type] # options of house()
                await test(built)

    asyncio.run(run())


async def refused(task: Awaitable[object]) -> MmsupError:
    with pytest.raises(MmsupError) as caught:
        await task
    return caught.value
