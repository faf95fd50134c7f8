"""A router without workers, for tests of what clients see: models are functions of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from mmsup.gateway.client_memory.region_table import RegionTable
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult, InputTensor, OutputTensor
from mmsup.gateway.server import GatewayServer
from mmsup.gateway.waking.request_wait import WaitingBody
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.messages.data import DeviceRegion, InferReply
from mmsup.ipc.messages.gateway_control import ConfigureGateway, MemoryRegion, Route, VersionState
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec

Tensor = tuple[str, tuple[int, ...], bytes]  # datatype, shape, bytes
Model = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def echo(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every input `X` comes back as output `X_out`."""
    return {f"{name}_out": tensor for name, tensor in inputs.items()}


def metadata(*tensors: tuple[str, str, tuple[int, ...]], max_batch_size: int = 0) -> Metadata:
    """Of an echo model with these inputs."""
    inputs = tuple(TensorSpec(*each) for each in tensors)
    outputs = tuple(TensorSpec(f"{each.name}_out", each.datatype, each.shape) for each in inputs)
    return Metadata("python", max_batch_size, inputs, outputs)


def region_table(mode: str = "local") -> RegionTable:
    """Of a gateway that is alone, whose controller takes every region."""
    made = RegionTable(mode, ())

    async def announce(region: MemoryRegion, fd: int) -> None:
        made.add(region, [os.dup(fd)] if fd >= 0 else [])

    async def withdraw(kind: str, name: str) -> None:
        for each in made.held():
            if each.region.kind == kind and name in ("", each.region.name):
                made.remove(each.region.name)

    made.announce, made.withdraw = announce, withdraw
    return made


class FakeRequest(DispatchedRequest):
    """A request that is answered at once, by a function."""

    def __init__(self, router: FakeRouter, spec: ModelSpec, metadata: Metadata, deadline_ns: int) -> None:
        self.router = router
        self.spec = spec
        self.metadata = metadata
        self.deadline_ns = deadline_ns
        self.client_deadline_ns = 0
        self.parameters: dict[str, Any] = {}
        self.regions: tuple[DeviceRegion, ...] = ()
        self.in_flight: Any = None  # of an InFlightRequest only the signature of its reply
        self._bytes = self.buffer = memoryview(b"")
        self.link: Any = None  # of a link nothing is read but for slots of its memory, and here are none
        self._lent: list[bytearray] = []

    def reserve_bytes(self, size: int) -> None:
        """There is no limit here."""

    def close(self) -> None:
        self.router.unclosed_requests -= 1
        self.router.request_closed.set()
        # What a transport still held would now be another request's bytes.
        for used in self._lent:
            used[:] = b"\xee" * len(used)

    def try_allocate(self, size: int) -> memoryview | None:
        self._bytes = self.buffer = self._lend(bytearray(size))
        return self._bytes

    def _lend(self, used: bytearray) -> memoryview:
        self._lent.append(used)
        return memoryview(used)

    def try_infer(self, job: InferenceJob, on_event: Callable[[RequestEvent], None]) -> bool:
        return False

    async def resume(self, job: InferenceJob, event: RequestEvent | None = None) -> InferenceResult:
        self.parameters, self.regions = job.parameters, job.regions
        self.router.calls.append(self)
        await self.router.before_infer()
        inputs = {each.name: (each.datatype, each.shape, self._bytes_of(each)) for each in job.inputs}
        outputs = self.router.models[self.spec.name](inputs)
        results = [
            OutputTensor(name, *outputs[name][:2], self._lend(bytearray(outputs[name][2])))
            for name in (job.outputs or [each.name for each in self.metadata.outputs])
            if name in outputs
        ]
        packed = repr([(each.name, each.datatype, each.shape) for each in results]).encode()
        self.in_flight = SimpleNamespace(signature=SimpleNamespace(packed=packed))
        return InferenceResult(results, InferReply(1, queue_ns=1000, input_ns=2000, infer_ns=3000, output_ns=4000))

    def _bytes_of(self, tensor: InputTensor) -> bytes:
        if tensor.data is not None:
            return bytes(tensor.data)
        return bytes(self._bytes[tensor.offset : tensor.offset + tensor.size])


class FakeRouter(Router):
    """Routes and limits are real; workers are functions, and the controller is `answers`."""

    def __init__(self, max_body_bytes: int = 64 << 20) -> None:
        self.threads = ThreadPoolExecutor(1)
        configure = ConfigureGateway(WIRE_VERSION, 0, 1, "mmsup", "9.9", max_body_bytes, 1 << 30, 1.0, 4096, 1 << 30)
        super().__init__(configure, self.threads)
        self.status.ready = True
        self.models: dict[str, Model] = {}
        self.described: dict[str, tuple[ModelSpec, Metadata]] = {}
        self.calls: list[FakeRequest] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {"status": {}}
        self.refusal: MmsupError | None = None
        self.regions = region_table()
        self.unclosed_requests = 0
        self.request_closed = asyncio.Event()

    async def before_infer(self) -> None:
        """A test may make this wait."""

    def serve(self, name: str, described: Metadata, model: Model = echo, **more: Any) -> None:
        """Serve a function as version 1 of a model; `more` goes into its spec."""
        spec = ModelSpec(
            name=name,
            version="1",
            directory=f"/nowhere/{name}/1",
            artefact="model.py",
            engine="custom",
            platform="python",
            max_batch_size=described.max_batch_size,
            **more,
        )
        self.models[name] = model
        self.described[name] = (spec, described)
        state = VersionState("1", "ready", "", "", 0, spec, described)
        self.routes.put(Route(name, wanted=True, default="1", versions=(state,)))

    async def open(
        self, name: str, version: str, deadline: int | None = None, body: WaitingBody | None = None
    ) -> FakeRequest:
        return self.try_open(name, version, deadline)

    def try_open(self, name: str, version: str, deadline: int | None = None) -> FakeRequest:
        self.routes.version(name, version)
        if self.refusal is not None:
            raise self.refusal
        self.unclosed_requests += 1
        return FakeRequest(self, *self.described[name], deadline or 1 << 62)

    async def call_controller(self, command: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((command, arguments))
        answer = self.answers[command]
        if isinstance(answer, MmsupError):
            raise answer
        return await answer if isinstance(answer, asyncio.Future) else answer


@contextlib.asynccontextmanager
async def served(router: FakeRouter, host: str = "127.0.0.1", front: str = "fast") -> AsyncIterator[int]:
    """The port on which a server with this router listens until the block ends."""
    fd = make_counter_table()
    server = GatewayServer(router, router.call_controller, [CounterTable(fd)], 0, router.regions)
    with socket.create_server((host, 0)) as sock:
        await server.start(front)
        await server.listen(sock)
        try:
            yield sock.getsockname()[1]
        finally:
            await server.close(0.1)
            router.threads.shutdown()
            router.regions.close()
            os.close(fd)
