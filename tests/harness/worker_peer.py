"""The other end of a link in a test's own hands: a real socket, real shared memory, a real process to die."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmsup.gateway.arena import LinkArena
from mmsup.gateway.backend import Backend
from mmsup.gateway.link import Link
from mmsup.ipc.arena import Attached
from mmsup.ipc.channel import Hub, WorkerEnd
from mmsup.ipc.codec import Record, decode, pack_frame, unpack_frame
from mmsup.ipc.messages import (
    ON_LINK,
    Configure,
    Drop,
    Extent,
    Grant,
    Infer,
    Release,
    Reply,
    Route,
    Tensor,
    VersionState,
)
from mmsup.ipc.messages import Link as LinkMessage
from mmsup.ipc.page import PageWriter, make_page
from mmsup.ipc.seqpacket import Seqpacket
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec

DEADLINE_S = 20.0
IDENTITY = b"g0.1"


def backend(executor: ThreadPoolExecutor, *, arena_bytes: int = 64 << 20, grace_s: float = 10.0) -> Backend:
    configure = Configure(1, 0, 1, "mmsup", "0", 64 << 20, arena_bytes, grace_s)
    return Backend(configure, executor)


def spec(name: str = "m", **fields: object) -> ModelSpec:
    return ModelSpec(name, "1", "/nowhere", "model.onnx", "ort", "onnxruntime_onnx", **fields)  # type: ignore[arg-type] # by the caller


def route(described: ModelSpec, state: str = "ready") -> Route:
    version = VersionState("1", state, "", "", 0.0, described, metadata())
    return Route(described.name, wanted=True, default="1", versions=(version,))


def metadata() -> Metadata:
    return Metadata("p", 0, (TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),))


class WorkerPeer:
    """One life of a worker, as the gateway meets it. The test says what it answers."""

    def __init__(self, folder: Path, described: ModelSpec, instance: int = 1, generation: int = 1) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        path = str(folder / f"w{instance}.{generation}")
        self.end = WorkerEnd(path)
        self.page_fd = make_page()
        self.page = PageWriter(self.page_fd)
        self.attached = Attached()
        self.pair, self.far = Seqpacket.pair()
        self.said = LinkMessage(instance, generation, path, described, metadata())
        self._records: deque[Record] = deque()

    def link(self, to: Backend, hub: Hub) -> Link:
        """Give the backend its link to this life."""
        arena = LinkArena(self.far, to.quota, to.executor, to.reclaim)
        pidfd = os.pidfd_open(self.process.pid)
        made = Link(self.said, hub.connect(self.said.address, IDENTITY), arena, (pidfd, os.dup(self.page_fd)))
        to.add_link(made)
        return made

    async def record(self) -> Record:
        """The next thing the gateway says."""
        end = time.monotonic() + DEADLINE_S
        while not self._records:
            assert time.monotonic() < end, "the gateway said nothing"
            received = self.end.receive()
            if received is None:
                await asyncio.sleep(0.001)  # the test's own loop must turn for the gateway's side to speak
                continue
            assert received[0] == IDENTITY
            self._records.extend(unpack_frame(received[1]))
        self._take_extents()
        return self._records.popleft()

    async def request(self) -> Infer:
        record = await self.record()
        assert isinstance(record, Infer), record
        return record

    async def grant(self) -> Grant:
        record = await self.record()
        assert isinstance(record, Grant), record
        return record

    async def drop(self) -> Drop:
        record = await self.record()
        assert isinstance(record, Drop), record
        return record

    def _take_extents(self) -> None:
        while (received := self.pair.receive()) is not None:
            data, descriptors = received
            message = decode(data, ON_LINK)
            if isinstance(message, Extent):
                self.attached.attach(message.segment, descriptors[0], message.size, writable=message.writable)
            elif isinstance(message, Release):
                self.attached.detach(message.segment)

    def bytes_of(self, tensor: Tensor) -> bytes:
        """What an input says, wherever it lies."""
        if tensor.data is not None:
            return bytes(tensor.data)
        view = self.attached.view(tensor.segment, tensor.offset, tensor.size, writable=False)
        assert view is not None
        return bytes(view)

    def say(self, reply: Reply) -> None:
        assert self.end.send(IDENTITY, pack_frame([reply]))

    def answer(self, request: Infer, data: bytes) -> None:
        """The result inline."""
        self.say(Reply(request.id, "", "", (Tensor("y", "UINT8", (len(data),), size=len(data), data=data),)))

    def answer_in(self, number: int, segment: int, offset: int, data: bytes) -> None:
        """The result in granted memory."""
        view = self.attached.view(segment, offset, len(data), writable=True)
        assert view is not None
        view[:] = data
        self.say(Reply(number, "", "", (Tensor("y", "UINT8", (len(data),), segment, offset, len(data)),)))

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.end.close()
        self.pair.close()
        os.close(self.page_fd)
