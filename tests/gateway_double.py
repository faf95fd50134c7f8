"""A gateway's backend without workers, for tests of what clients see: models are functions of this process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.dispatch.router import ReadWaitOptions, Router
from mmsup.gateway.protocol.inference_job import InferenceJob, InferenceResult, InputTensor, OutputTensor
from mmsup.gateway.server import GatewayServer
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.messages.gateway_control import ConfigureGateway, Route, VersionState
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


class FakeRequest(DispatchedRequest):
    """A request that is answered at once, by a function."""

    def __init__(self, backend: FakeRouter, spec: ModelSpec, described: Metadata, deadline_ns: int) -> None:
        self.router = backend
        self.spec = spec
        self.metadata = described
        self.model, self.version = spec.name, spec.version
        self._bytes = memoryview(b"")
        self._used: list[bytearray] = []
        self.deadline_ns = deadline_ns
        self.parameters: dict[str, Any] = {}

    def reserve_bytes(self, size: int) -> None:
        """There is no bound here."""

    def close(self) -> None:
        self.router.unclosed_requests -= 1
        self.router.left.set()
        # What a transport still held would now be another request's bytes.
        for used in self._used:
            used[:] = b"\xee" * len(used)

    def try_allocate(self, size: int) -> memoryview | None:
        self._bytes = self._lend(bytearray(size))
        return self._bytes

    def _lend(self, used: bytearray) -> memoryview:
        self._used.append(used)
        return memoryview(used)

    def try_infer(self, run: InferenceJob, on_event: Callable[[RequestEvent], None]) -> bool:
        return False

    async def resume(self, run: InferenceJob, said: RequestEvent | None) -> InferenceResult:
        self.parameters = run.parameters
        self.router.calls.append(self)
        await self.router.before_infer()
        given = {each.name: (each.datatype, each.shape, self._bytes_of(each)) for each in run.inputs}
        made = self.router.models[self.spec.name](given)
        results = [
            OutputTensor(name, *made[name][:2], self._lend(bytearray(made[name][2])))
            for name in (run.outputs or [each.name for each in self.metadata.outputs])
            if name in made
        ]
        return InferenceResult(results, 1000, 2000, 3000, 4000, 1)

    def _bytes_of(self, given: InputTensor) -> bytes:
        if given.data is not None:
            return bytes(given.data)
        return bytes(self._bytes[given.offset : given.offset + given.size])


class FakeRouter(Router):
    """Routes and bounds are real; workers are functions, and the brain is `answers`."""

    def __init__(self, max_body_bytes: int = 64 << 20) -> None:
        self.threads = ThreadPoolExecutor(1)
        configure = ConfigureGateway(WIRE_VERSION, 0, 1, "mmsup", "9.9", max_body_bytes, 1 << 30, 1.0, 4096, 1 << 30)
        super().__init__(configure, self.threads)
        self.set_readiness(ready=True, reason="")
        self.models: dict[str, Model] = {}
        self.described: dict[str, tuple[ModelSpec, Metadata]] = {}
        self.calls: list[FakeRequest] = []
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {"status": {}}
        self.refusal: MmsupError | None = None
        self.unclosed_requests = 0
        self.left = asyncio.Event()
        """An exchange was left."""

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
        self, name: str, version: str, deadline_ns: int | None = None, read_wait_options: ReadWaitOptions | None = None
    ) -> FakeRequest:
        return self.try_open(name, version, deadline_ns)

    def try_open(self, name: str, version: str, deadline_ns: int | None = None) -> FakeRequest:
        self.routes.version(name, version)
        if self.refusal is not None:
            raise self.refusal
        self.unclosed_requests += 1
        return FakeRequest(self, *self.described[name], deadline_ns or 1 << 62)

    async def call_controller(self, verb: str, arguments: dict[str, Any]) -> Any:
        self.asked.append((verb, arguments))
        answer = self.answers[verb]
        if isinstance(answer, MmsupError):
            raise answer
        return answer


@contextlib.asynccontextmanager
async def served(backend: FakeRouter, host: str = "127.0.0.1", wanted: str = "fast") -> AsyncIterator[int]:
    """The port on which this backend is served by the front that is wanted, and then no more."""
    fd = make_counter_table()
    front = GatewayServer(backend, [CounterTable(fd)], 0)
    with socket.create_server((host, 0)) as sock:
        await front.start(wanted)
        await front.listen(sock)
        try:
            yield sock.getsockname()[1]
        finally:
            await front.close(0.1)
            backend.threads.shutdown()
            os.close(fd)
