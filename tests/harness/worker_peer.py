"""A worker simulated by a test for a gateway: a real socket, real shared memory and a real process that can die."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.ipc.memory.arena import AttachedExtents
from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.messages.data import (
    AttachExtent,
    Cancel,
    DetachExtent,
    GrantBuffer,
    Infer,
    InferReply,
    InferSignature,
    ReplySignature,
    TensorLocation,
)
from mmsup.ipc.messages.gateway_control import ConfigureGateway, LinkWorker, Route, VersionState
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.transport.codec import DataRecord, pack_frame, pack_signature, unpack_frame, unpack_infer_signature
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.zeromq_channel import ZmqContext, ZmqWorkerChannel

DEADLINE_S = 20.0
IDENTITY = b"g0.1"


def backend(executor: ThreadPoolExecutor, *, arena_bytes: int = 64 << 20, grace_s: float = 10.0) -> Router:
    configure = ConfigureGateway(1, 0, 1, "mmsup", "0", 64 << 20, arena_bytes, grace_s, 4096, 1 << 30)
    return Router(configure, executor)


def spec(name: str = "m", **fields: object) -> ModelSpec:
    return ModelSpec(name, "1", "/nowhere", "model.onnx", "ort", "onnxruntime_onnx", **fields)  # type: ignore[arg-type] # by the caller


def route(described: ModelSpec, state: str = "ready") -> Route:
    version = VersionState("1", state, "", "", 0.0, described, metadata())
    return Route(described.name, wanted=True, default="1", versions=(version,))


def metadata() -> Metadata:
    return Metadata("p", 0, (TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),))


def form_of(request: Infer) -> InferSignature:
    """The parsed header of a request."""
    return unpack_infer_signature(request.signature)


def result(number: int, data: bytes, place: TensorLocation | None = None) -> InferReply:
    """A successful reply with one output, inline or in shared memory."""
    words = pack_signature(ReplySignature((TensorSpec("y", "UINT8", (len(data),)),)))
    return InferReply(number, signature=words, locations=(data if place is None else place,))


class WorkerPeer:
    """One simulated worker process; the test chooses its replies."""

    def __init__(
        self,
        folder: Path,
        described: ModelSpec,
        instance: int = 1,
        generation: int = 1,
        *,
        zeromq: bool = False,
        declared: Metadata | None = None,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """`declared`: the tensors that it reports; those of `metadata()` by default. `process`: one that the caller
        owns and ends."""
        self.process = process or subprocess.Popen(["sleep", "600"])
        self._is_own_process = process is None
        path = str(folder / f"w{instance}.{generation}") if zeromq else ""
        self.end = ZmqWorkerChannel(path) if zeromq else None
        self.page_fd = make_status_page()
        self.page = StatusPageWriter(self.page_fd)
        self.attached = AttachedExtents()
        near, far = ControlChannel.pair()
        self.pair, self._far = DataChannel(near.detach()), far.detach()
        self.said = LinkWorker(instance, generation, path, IDENTITY, described, declared or metadata())
        self._records: deque[DataRecord] = deque()

    def link(self, to: Router, hub: ZmqContext) -> WorkerLink:
        """Connect the backend to this worker."""
        pair = DataChannel(self._far)
        arena = LinkMemory(pair, to.memory_quota, to.executor, to.links.release_idle_memory)
        pidfd = os.pidfd_open(self.process.pid)
        end = hub.connect(self.said.address, IDENTITY) if self.said.address else pair
        made = WorkerLink(self.said, end, arena, (pidfd, os.dup(self.page_fd)))
        to.add_link(made)
        return made

    async def record(self) -> DataRecord:
        """The next message of the gateway."""
        end = time.monotonic() + DEADLINE_S
        while not self._records:
            assert time.monotonic() < end, "the gateway said nothing"
            if not self._hear():
                await asyncio.sleep(0.001)  # the test's own loop must turn for the gateway's side to speak
        return self._records.popleft()

    def _hear(self) -> bool:
        heard = False
        while (received := self.pair.receive_with_fds()) is not None:
            heard = True
            frame, descriptors = received
            self._take(unpack_frame(frame), descriptors)
        while self.end is not None and (frames := self.end.receive()) is not None:
            heard = True
            assert frames[0] == IDENTITY
            self._records.extend(unpack_frame(frames[1]))
        return heard

    def _take(self, records: list[DataRecord], descriptors: list[int]) -> None:
        for each in records:
            if isinstance(each, AttachExtent):
                self.attached.attach(each.segment, descriptors.pop(0), each.size, writable=each.writable)
            elif isinstance(each, DetachExtent):
                self.attached.detach(each.segment)
            else:
                self._records.append(each)

    async def request(self) -> Infer:
        record = await self.record()
        assert isinstance(record, Infer), record
        return record

    async def grant(self) -> GrantBuffer:
        record = await self.record()
        assert isinstance(record, GrantBuffer), record
        return record

    async def drop(self) -> Cancel:
        record = await self.record()
        assert isinstance(record, Cancel), record
        return record

    def bytes_of(self, place: TensorLocation) -> bytes:
        """The bytes of an input, inline or in shared memory."""
        if not isinstance(place, tuple):
            return bytes(place)
        view = self.attached.view(*place, writable=False)
        assert view is not None
        return bytes(view)

    def say(self, reply: InferReply) -> None:
        frame = pack_frame([reply])
        assert self.pair.send(frame) if self.end is None else self.end.send(IDENTITY, frame)

    def answer(self, request: Infer, data: bytes) -> None:
        """Reply with an inline result."""
        self.say(result(request.id, data))

    def answer_in(self, number: int, segment: int, offset: int, data: bytes) -> None:
        """Reply with the result in granted memory."""
        self._hear()
        view = self.attached.view(segment, offset, len(data), writable=True)
        assert view is not None
        view[:] = data
        self.say(result(number, data, (segment, offset, len(data))))

    def hang_up(self) -> None:
        """Close the socket while the process still runs."""
        self.pair.close()

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        if self._is_own_process:
            self.process.kill()
            self.process.wait()
        if self.end is not None:
            self.end.close()
        self.pair.close()
        os.close(self.page_fd)
