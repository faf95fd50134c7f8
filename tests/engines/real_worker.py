"""A real worker process; the test plays its controller, keeper and gateways."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mmsup.ipc.memory.arena import ArenaSide, Extent, Slot
from mmsup.ipc.memory.status_page import Progress, StatusPageReader, make_status_page
from mmsup.ipc.messages.data import AttachExtent, Infer, InferReply, InferSignature, TensorLocation
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import (
    FROM_WORKER,
    AttachGateway,
    ConfigureWorker,
    LoadFailed,
    LoadProgress,
    StopWorker,
    WorkerReady,
)
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array, as_array, as_bytes, datatype_of
from mmsup.ipc.transport.codec import (
    DataRecord,
    decode,
    encode,
    pack_frame,
    pack_signature,
    unpack_frame,
    unpack_reply_signature,
)
from mmsup.ipc.transport.control_channel import ChannelClosed, ControlChannel
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.zeromq_channel import ZmqContext, ZmqGatewayChannel

PATIENCE_S = 60.0
"""A deadline that passes only when something is broken."""


def wait_readable(fd: int, deadline: float) -> bool:
    """Whether the descriptor becomes readable before the deadline."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(deadline - time.monotonic(), 0) * 1000))


class RealWorker:
    """One worker process, from its spawn to its exit."""

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        *,
        wire: int = WIRE_VERSION,
        data_limit_bytes: int = 0,
        zeromq: bool = False,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        """`env`: its environment, PATH alone by default; `before`: a command that runs the one after it."""
        self.spec = spec
        self.folder = folder
        self.received: list[Any] = []  # messages of FROM_WORKER
        self.control, theirs = ControlChannel.pair()
        lifeline, self.lifeline = os.pipe()
        self.crash, crash = os.pipe()
        page = make_status_page()
        self.page = StatusPageReader(page)
        self.output = folder / "output"
        inherited = {"lifeline": lifeline, "control": theirs.fileno(), "page": page, "crash": crash}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *before,
                    sys.executable,
                    "-P",
                    "-m",
                    "mmsup.worker",
                    *[f"{name}={fd}" for name, fd in inherited.items()],
                    "label",
                ],
                env=env or {"PATH": os.environ["PATH"]},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=list(inherited.values()),
                start_new_session=True,
            )
        theirs.close()
        for fd in (lifeline, page, crash):
            os.close(fd)
        self.address = str(folder / "w7.1") if zeromq else ""
        configuration = ConfigureWorker(wire, 7, 1, self.address, spec, data_limit_bytes, 1 << 30)
        assert self.control.send(encode(configuration))
        self.hub = ZmqContext()
        self.gateways: list[FakeGateway] = []

    def receive_control(self) -> Any:  # one of FROM_WORKER; None at the end
        """The worker's next message on the control channel."""
        deadline = time.monotonic() + PATIENCE_S
        while wait_readable(self.control.fileno(), deadline):
            try:
                received = self.control.receive()
            except Exception:  # noqa: BLE001 - ChannelClosed, or any other end of it
                return None
            if received is not None:
                self.received.append(decode(received[0], FROM_WORKER))
                return self.received[-1]
        raise AssertionError(f"nothing within {PATIENCE_S} s; received {self.received}, log {self.log()}")

    def wait_ready(self) -> Metadata:
        """Wait until it serves."""
        while True:
            message = self.receive_control()
            assert isinstance(message, (Hello, LoadProgress, WorkerReady)), f"{message}; log {self.log()}"
            if isinstance(message, WorkerReady):
                return message.metadata

    def wait_load_failed(self) -> LoadFailed:
        """Wait until it reports that it cannot load."""
        while True:
            message = self.receive_control()
            assert isinstance(message, (Hello, LoadProgress, LoadFailed)), f"{message}; log {self.log()}"
            if isinstance(message, LoadFailed):
                return message

    def wait_exit(self) -> int:
        """Wait for its exit; the status, negative for a signal."""
        return self.process.wait(PATIENCE_S)

    def log(self) -> str:
        """What it wrote to its log."""
        return self.output.read_text(errors="replace")

    def sockets(self) -> int:
        """How many sockets it has open."""
        found = 0
        for each in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed while we look
                found += os.readlink(each).startswith("socket:")
        return found

    def progress(self) -> Progress:
        """A reading of its status page."""
        return self.page.read()

    def gateway(self, place: int = 0, generation: int = 1, *, attached: bool = True) -> FakeGateway:
        """A gateway, attached to the worker unless the test wants otherwise."""
        gateway = FakeGateway(self, place, f"g{place}.{generation}".encode())
        self.gateways.append(gateway)
        if attached:
            gateway.attach()
        return gateway

    def stop(self) -> None:
        """Send StopWorker."""
        assert self.control.send(encode(StopWorker()))

    def __enter__(self) -> RealWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for gateway in self.gateways:
            gateway.close()
        self.hub.close()
        self.control.close()
        os.close(self.crash)
        with contextlib.suppress(OSError):
            os.close(self.lifeline)


class FakeGateway:
    """One gateway: a socket pair, an arena, a DEALER if that carries the requests."""

    def __init__(self, worker: RealWorker, place: int, identity: bytes) -> None:
        self.worker = worker
        self.place = place
        self.identity = identity
        self.pair: DataChannel | None = None
        self._dealer = worker.hub.connect(worker.address, identity) if worker.address else None
        self.requests = ArenaSide(writable_by_worker=False)
        self.results = ArenaSide(writable_by_worker=True)
        self.ids = itertools.count(1 << 40)
        self._segments = itertools.count()
        self._replies: list[InferReply] = []

    @property
    def end(self) -> DataChannel | ZmqGatewayChannel:
        """The channel that carries frames."""
        if self._dealer is not None:
            return self._dealer
        assert self.pair is not None, "it is not attached"
        return self.pair

    def attach(self) -> None:
        """Have the worker attach this gateway."""
        self.pair = self.attach_again(self.identity)

    def attach_again(self, identity: bytes) -> DataChannel:
        """Have the worker attach this gateway with one more pair; returns our end of it."""
        ours, theirs = ControlChannel.pair()
        assert self.worker.control.send(encode(AttachGateway(self.place, identity)), [theirs.fileno()])
        theirs.close()
        return DataChannel(ours.detach())

    def extent(self, side: ArenaSide, size: int = 1 << 20) -> Extent:
        """A new extent, attached to the worker."""
        extent = Extent(next(self._segments), size, writable_by_worker=side.writable_by_worker)
        side.add(extent)
        message = AttachExtent(extent.segment, extent.size, extent.writable_by_worker)
        assert self.pair is not None
        assert self.pair.send(pack_frame([message]), [extent.fd])
        return extent

    def slot(self, side: ArenaSide, size: int) -> Slot:
        """A slot in an extent, which is made if none has room."""
        slot = side.allocate(size)
        if slot is None:
            self.extent(side, max(1 << 20, -(-size // 4096) * 4096 * 2))
            slot = side.allocate(size)
        assert slot is not None
        return slot

    def location(self, array: Array) -> TensorLocation:
        """An input's bytes, inline or in a slot by their size."""
        data = as_bytes(array)
        if len(data) <= INLINE_LIMIT_BYTES:
            return bytes(data)
        slot = self.slot(self.requests, len(data))
        slot.view[:] = data
        return slot.segment, slot.offset, slot.size

    def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        outputs: Sequence[str] = (),
        buffer: Slot | None = None,
        deadline_s: float = PATIENCE_S,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        runs_alone: bool = False,
    ) -> Infer:
        """A request, not yet sent."""
        specs = tuple(TensorSpec(name, datatype_of(array) or "", array.shape) for name, array in inputs.items())
        signature = pack_signature(InferSignature(specs, tuple(outputs), dict(parameters or {}), priority, runs_alone))
        locations = tuple(self.location(array) for array in inputs.values())
        granted = (buffer.segment, buffer.offset, buffer.size) if buffer else None
        return Infer(next(self.ids), signature, time.monotonic_ns() + int(deadline_s * 1e9), granted, locations)

    def send(self, *messages: DataRecord) -> None:
        """Send in one frame."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.end.send(pack_frame(messages)):
            assert wait_readable(self.end.fileno(), deadline), "the worker's socket is not there"

    def reply(self) -> InferReply:
        """The next reply."""
        reply = self.reply_within(PATIENCE_S)
        assert reply is not None, f"no reply; log {self.worker.log()}"
        return reply

    def reply_within(self, seconds: float) -> InferReply | None:
        """The next reply, or None if none comes in time."""
        deadline = time.monotonic() + seconds
        while not self._replies:
            try:
                frame = self.end.receive()
            except ChannelClosed:
                return None
            if frame is not None:
                for record in unpack_frame(frame):
                    assert isinstance(record, InferReply)
                    self._replies.append(record)
            elif time.monotonic() > deadline:
                return None
            else:
                wait_readable(self.end.fileno(), min(deadline, time.monotonic() + 0.05))
        return self._replies.pop(0)

    def request(
        self, inputs: Mapping[str, Array], *, outputs: Sequence[str] = (), buffer: Slot | None = None
    ) -> InferReply:
        """Send a request and wait for its reply."""
        request = self.infer(inputs, outputs=outputs, buffer=buffer)
        self.send(request)
        reply = self.reply()
        assert reply.id == request.id
        return reply

    def array(self, reply: InferReply, name: str) -> Array:
        """One output of a reply, inline or in shared memory."""
        assert not reply.code, reply
        specs = unpack_reply_signature(reply.signature).outputs
        ((spec, place),) = [pair for pair in zip(specs, reply.locations, strict=True) if pair[0].name == name]
        return as_array(self._output_bytes(place), spec.datatype, spec.shape)

    def _output_bytes(self, place: TensorLocation) -> bytes | memoryview:
        if not isinstance(place, tuple):
            return bytes(place)
        segment, offset, size = place
        (extent,) = [each for each in self.results if each.segment == segment]
        assert 0 <= offset <= offset + size <= extent.size
        return extent.view(offset, size)

    def close(self) -> None:
        """Close everything, as a gateway that dies does."""
        if self._dealer is not None:
            self._dealer.close()
        if self.pair is not None:
            self.pair.close()
            self.pair = None
        self.requests.close()
        self.results.close()


@contextlib.contextmanager
def serving(spec: ModelSpec, folder: Path, *, zeromq: bool = False) -> Iterator[tuple[RealWorker, FakeGateway]]:
    """A worker that is ready, and one gateway."""
    with RealWorker(spec, folder, zeromq=zeromq) as worker:
        worker.wait_ready()
        yield worker, worker.gateway()
