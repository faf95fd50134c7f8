"""A gateway over simulated workers, driven without sockets, whose front is one of three that must not be told apart.

The fronts: fast connections that use known requests, fast connections that do not, aiohttp alone. A test runs the same
script on each and compares what the clients, the workers and the counters saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fake_transport import QUIET_ITERATIONS, FakeTransport, Reply, replies
from harness.scripted_worker import DTYPES, OUTPUT, Do, ScriptedWorker, Seen, model_outputs
from harness.worker_peer import backend, spec
from mmsup.gateway.api.app import HttpApp
from mmsup.gateway.connections.context import ConnectionContext
from mmsup.gateway.connections.listener import HttpListener
from mmsup.gateway.dispatch.router import Router
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.request_counters import RequestCounters
from mmsup.gateway.protocol.binary_tensors import HEADER
from mmsup.ipc.errors import make_error
from mmsup.ipc.memory.counters import CounterTable, make_counter_table
from mmsup.ipc.messages.gateway_control import Route, VersionState
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.transport.zeromq_channel import ZmqContext

FRONTS: Final = ("known", "unknown", "aiohttp")
DEADLINE_S: Final = 10.0
MODELS: Final = {
    "m": Metadata("p", 0, (TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),)),
    "f": Metadata("p", 0, (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)),
    "fixed": Metadata("p", 0, (TensorSpec("x", "FP32", (8,)),), (TensorSpec("y", "FP32", (8,)),)),
    "pair": Metadata(
        "p",
        0,
        (TensorSpec("a", "FP32", (-1,)), TensorSpec("b", "INT32", (-1,))),
        (TensorSpec("c", "FP32", (-1,)), TensorSpec("d", "INT32", (-1,))),
    ),
    "e": Metadata("p", 0, (TensorSpec("X", "FP32", (-1,)),), (TensorSpec("X_out", "FP32", (-1,)),)),
    "rows": Metadata("p", 8, (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)),
}
"""The models of the simulated workers; `rows` has a batch axis, the outputs of `fixed` are known before."""
_UNEQUAL: Final = ("request_ns", "fail_ns", "bucket_", "last_inference_ms", "known", "arena_held_bytes")
"""Counters that may differ from front to front: times of this machine, and how a request was served."""
Tag = tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """One request of a client: what the worker shall do with it, and how it is written down."""

    tag: Tag
    """Two numbers below 256 that no other request has."""
    model: str = "m"
    version: str = ""
    do: Do = Do.ANSWER
    form: str = "binary"
    """`binary`; `json`; `binary in` or `binary out`, the other side in JSON; `raw`: no JSON at all."""
    size: int = 8
    """Values of each input, at least 4."""
    noise: int = 0
    """Chooses the values behind the tag."""
    id: str = ""
    lines: tuple[str, ...] = ()
    """Lines of the head, before those of the lengths."""
    outputs: tuple[str, ...] = ()
    parameters: tuple[tuple[str, int | str | bool], ...] = ()
    rows: int = 1

    def again(self, number: int, do: Do = Do.ANSWER) -> Order:
        """The same kind of request with other values."""
        return replace(self, tag=(self.tag[0], number), do=do, noise=number)

    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """The values by name. The first one tells the worker what to do, the next two are the tag."""
        declared = MODELS[self.model]
        rest = [(self.noise * 31 + 7 * index) % 200 for index in range(self.size * self.rows - 3)]
        flat = [int(self.do), *self.tag, *rest]
        shape = (self.rows, self.size) if declared.max_batch_size else (self.size,)
        return {each.name: np.array(flat, DTYPES[each.datatype]).reshape(shape) for each in declared.inputs}

    def packed(self) -> bytes:
        document, blobs = self._body()
        words = b"" if self.form == "raw" else json.dumps(document).encode()
        version = f"/versions/{self.version}" if self.version else ""
        lines = [f"POST /v2/models/{self.model}{version}/infer HTTP/1.1", "Host: localhost", *self.lines]
        if blobs or self.form == "raw":
            lines.append(f"{HEADER}: {len(words)}")
        lines.append(f"Content-Length: {len(words) + len(blobs)}")
        return "\r\n".join([*lines, "", ""]).encode() + words + blobs

    def _body(self) -> tuple[dict[str, Any], bytes]:  # JSON
        inputs: list[dict[str, Any]] = []  # JSON
        blobs = b""
        for name, values in self.inputs().items():
            datatype = next(each.datatype for each in MODELS[self.model].inputs if each.name == name)
            inputs.append({"name": name, "shape": list(values.shape), "datatype": datatype})
            if self.form in ("json", "binary out"):
                inputs[-1]["data"] = values.reshape(-1).tolist()
            else:
                inputs[-1]["parameters"] = {"binary_data_size": values.nbytes}
                blobs += values.tobytes()
        parameters: dict[str, Any] = dict(self.parameters)  # JSON
        if self.form in ("binary", "binary out"):
            parameters["binary_data_output"] = True
        document: dict[str, Any] = {"id": self.id} if self.id else {}  # JSON
        document["inputs"] = inputs
        if self.outputs:
            document["outputs"] = [{"name": each} for each in self.outputs]
        if parameters:
            document["parameters"] = parameters
        return document, blobs

    def expected(self, version: int) -> dict[str, list[float]]:
        """The outputs of a right answer by this version."""
        inputs = self.inputs()
        outputs = dict(zip(map(OUTPUT.__getitem__, inputs), model_outputs(list(inputs.values()), version), strict=True))
        return {name: outputs[name].reshape(-1).tolist() for name in self.outputs or outputs}


def is_compared(counter: str) -> bool:
    """Whether a counter is the same whatever the front. The times that the simulated workers report are."""
    return not counter.startswith(_UNEQUAL)


def answer_of(reply: Reply) -> dict[str, list[float]]:
    """The outputs in a response."""
    headers = {name.lower(): value for name, value in reply.headers}
    end = int(headers.get(HEADER.lower(), len(reply.body)))
    found: dict[str, list[float]] = {}
    at = end
    for each in json.loads(reply.body[:end])["outputs"]:
        size = each.get("parameters", {}).get("binary_data_size")
        if size is None:
            found[each["name"]] = each["data"]
            continue
        found[each["name"]] = np.frombuffer(reply.body[at : at + size], DTYPES[each["datatype"]]).tolist()
        at += size
    assert at == len(reply.body)
    return found


class ScriptedClient:
    """One connection of a client, with what was sent over it and answered."""

    def __init__(self, gateway: ScriptedGateway) -> None:
        self._gateway = gateway
        self.transport = FakeTransport(gateway.listener())
        self.complete: list[Order] = []
        """Requests of which every byte was sent."""
        self.has_left = False

    def send(self, data: bytes, *complete: Order) -> None:
        """Bytes of requests; `complete`: those whose last byte is among them."""
        self.complete += complete
        self.transport.send(data)

    def ask(self, *orders: Order) -> None:
        """Send whole requests in one piece."""
        self.send(b"".join(each.packed() for each in orders), *orders)

    def replies(self) -> tuple[Reply, ...]:
        return replies(bytes(self.transport.written))

    def leave(self) -> None:
        self.has_left = True
        self.transport.close()

    def is_settled(self) -> bool:
        """Whether its requests are answered, but for one that a worker holds and those behind it."""
        if self.has_left or self.transport.closing:
            return True
        answered = len(self.replies())
        return answered >= len(self.complete) or self.complete[answered].tag in self._gateway.held_tags()

    def read(self) -> tuple[int, dict[str, list[float]]]:
        """Status of the last reply, and its outputs."""
        last = self.replies()[-1]
        return last.status, answer_of(last) if last.status == 200 else {}


@dataclass(frozen=True)
class Record:
    """What clients, workers and operators saw of a script."""

    replies: tuple[tuple[Reply, ...], ...]
    closed: tuple[bool, ...]
    counters: Mapping[tuple[str, str], Mapping[str, int]]
    batches: Mapping[tuple[str, str], Mapping[int, int]]
    seen: Mapping[tuple[str | int, ...], Seen]
    """What the workers got, by model, version and tag; the last time, if a worker was lost with it."""
    unexpected_replies: int


class ScriptedGateway:
    """One router, one front."""

    def __init__(self, front: str, folder: Path, executor: ThreadPoolExecutor, **options: Any) -> None:  # of backend()
        self.router: Router = backend(executor, **options)
        self.router.status.ready = True
        self._table = make_counter_table()
        self.counters = RequestCounters([CounterTable(self._table)], 0)
        self.handler = handler = InferHandler(self.router, self.counters, executor)
        self.context = None if front == "aiohttp" else connection_context(handler, use_known_requests=front == "known")
        self.app = HttpApp(handler, _no_controller)
        self.listener = HttpListener(self.app.serve, is_local=True, context=self.context)
        self.clients: list[ScriptedClient] = []
        self.workers: list[ScriptedWorker] = []
        self.links: list[WorkerLink] = []
        self.restarts = False
        """A worker that is lost is replaced at once."""
        self._folder = folder
        self._process = subprocess.Popen(["sleep", "600"])
        self._generations = itertools.count(1)
        self._zeromq = ZmqContext()
        self._specs: dict[str, tuple[ModelSpec, ...]] = {}

    # Models.

    def serve(self, name: str, *versions: str, default: str = "", instances: int = 1, **fields: Any) -> None:
        """Route these versions of a model of MODELS, with that many workers each; `fields` go into its spec."""
        described = spec(name, **fields)
        self._specs[name] = tuple(replace(described, version=each) for each in versions)
        self.put_route(name, default or versions[0])
        for each in self._specs[name]:
            for _ in range(instances):
                self.add_worker(name, each.version)

    def make_listener(self, front: str) -> HttpListener:
        """Another one, with caches of its own."""
        context = None
        if front != "aiohttp":
            context = connection_context(self.handler, use_known_requests=front == "known")
        return HttpListener(self.app.serve, is_local=True, context=context)

    def put_route(self, name: str, default: str, *, wanted: bool = True, state: str = "ready") -> None:
        states = tuple(VersionState(each.version, state, "", "", 0.0, each, MODELS[name]) for each in self._specs[name])
        self.router.routes.put(Route(name, wanted=wanted, default=default, versions=states))
        self.router.waiters.notify()

    def add_worker(self, name: str, version: str, metadata: Metadata | None = None) -> ScriptedWorker:
        """One more worker of a version, with a link to it; a controller would have started it."""
        described = next(each for each in self._specs[name] if each.version == version)
        number = next(self._generations)
        worker = ScriptedWorker(self._folder, described, metadata or MODELS[name], number, self._process)
        link = worker.link(self.router, self._zeromq)
        link.channel.on_protocol_error = partial(self._on_protocol_error, link)
        self.workers.append(worker)
        self.links.append(link)
        return worker

    def _on_protocol_error(self, link: WorkerLink, _: str) -> None:
        self.lose(link, "bad_worker_reply", "its answer is not valid")

    def lose(self, link: WorkerLink, code: str, text: str = "it ended") -> None:
        """The worker of this link has ended, or is about to be killed."""
        self.router.verdicts.set(link.worker_id, make_error(code, text, model=link.spec.name))
        link.close()
        if self.restarts:
            asyncio.get_running_loop().call_soon(self.replace_lost)

    def replace_lost(self) -> None:
        """A new worker for each version that has none."""
        for name, versions in self._specs.items():
            for each in versions:
                if not self.router.links.serving.get((name, each.version)):
                    self.add_worker(name, each.version)

    # Clients.

    def connect(self) -> ScriptedClient:
        self.clients.append(ScriptedClient(self))
        return self.clients[-1]

    def held_tags(self) -> set[Tag]:
        pairs = zip(self.workers, self.links, strict=True)
        return {tag for worker, link in pairs if not link.closed for tag in worker.tags()}

    async def settle(self) -> None:
        """Let workers and gateway turn until every request is answered or held, and nothing more happens."""
        end_s = time.monotonic() + DEADLINE_S
        quiet, seen = 0, None
        while quiet < QUIET_ITERATIONS or not all(each.is_settled() for each in self.clients):
            for each in self.workers:
                each.turn()
            await asyncio.sleep(0)
            now = (
                [(len(each.transport.written), each.transport.lost, each.transport.paused) for each in self.clients],
                [each.events for each in self.workers],
                [(len(each.in_flight.requests), each.closed) for each in self.links],
            )
            quiet = quiet + 1 if now == seen else 0
            seen = now
            if quiet >= QUIET_ITERATIONS:  # something takes time of its own, such as making memory
                await asyncio.sleep(0.001)
            assert time.monotonic() < end_s, f"no outcome of {self._unsettled()}"

    def _unsettled(self) -> list[Order]:
        return [each.complete[len(each.replies())] for each in self.clients if not each.is_settled()]

    def release(self, *, backwards: bool = False) -> None:
        """Let the workers answer what they hold."""
        for each in self.workers:
            each.release(backwards=backwards)

    async def finish(self) -> Record:
        """Answer what is held, let the clients leave, and check that nothing is left of any request."""
        while self.held_tags():
            self.release()
            await self.settle()
        record = self._record()
        for each in self.clients:
            each.leave()
        await self.settle()
        router = self.router
        assert router.admission.open_requests == router.admission.open_bytes == 0
        assert not router.admission.requests_by_model
        for link in self.links:
            if not link.closed:
                assert not link.in_flight.requests, "a request is still in flight"
                assert not link.reserved_requests, "a request that ended is still reserved"
                assert link.memory.requests.used_bytes == link.memory.results.used_bytes == 0, "a slot was not freed"
        return record

    def _record(self) -> Record:
        totals = {
            key: {name: value for name, value in row.items() if value and is_compared(name)}
            for key, row in self.counters.totals().items()
        }
        batches = {
            key: {size: fields["exec_count"] for size, fields in sizes.items()}
            for key, sizes in self.counters.batch_totals().items()
        }
        return Record(
            tuple(each.replies() for each in self.clients),
            tuple(each.transport.closing for each in self.clients),
            totals,
            batches,
            {(each.said.spec.name, each.version, *found.tag): found for each in self.workers for found in each.seen},
            sum(each.in_flight.unexpected_replies for each in self.links),
        )

    def histogram_counts(self) -> dict[tuple[str, str], int]:
        """The observations in each version's histogram of durations."""
        rows = self.counters.totals().items()
        return {key: sum(row[name] for name in row if name.startswith("bucket_")) for key, row in rows}

    async def close(self) -> None:
        self.listener.pre_shutdown()
        await self.listener.shutdown(0.1)
        for link in list(self.router.links.by_worker.values()):
            link.close()
        await asyncio.sleep(0)
        self._zeromq.close()
        for each in self.workers:
            each.close()
        self._process.kill()
        self._process.wait()
        os.close(self._table)


def connection_context(handler: InferHandler, *, use_known_requests: bool) -> ConnectionContext:
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {}  # arguments that may not be there
    if "use_known_requests" in inspect.signature(ConnectionContext).parameters:
        options["use_known_requests"] = use_known_requests
    return ConnectionContext(handler, loop, **options)


async def _no_controller(command: str, arguments: dict[str, Any]) -> Any:  # JSON, by command
    assert command == "index", f"no command is expected: {command} {arguments}"
    return []


@contextlib.asynccontextmanager
async def scripted_gateway(front: str, **options: Any) -> AsyncIterator[ScriptedGateway]:  # of ScriptedGateway
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder, ThreadPoolExecutor(1) as executor:
        gateway = ScriptedGateway(front, Path(folder), executor, **options)
        try:
            yield gateway
        finally:
            await gateway.close()


def known_count(gateway: ScriptedGateway, models: Sequence[str] = ()) -> int | None:
    """How many requests were served as known ones; None if this is not counted."""
    rows = [row for (model, _), row in gateway.counters.totals().items() if not models or model in models]
    return sum(row["known"] for row in rows) if rows and "known" in rows[0] else None
