"""A real worker process, with this test as its brain, keeper and gateways."""

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
"""Fires only when something is broken."""


def wait_readable(fd: int, deadline: float) -> bool:
    """Whether something can be read before the deadline."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(deadline - time.monotonic(), 0) * 1000))


class Life:
    """One worker, from its spawn to its end."""

    def __init__(
        self,
        spec: ModelSpec,
        folder: Path,
        *,
        wire: int = WIRE_VERSION,
        data_limit_bytes: int = 0,
        zeromq: bool = False,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.said: list[Any] = []  # messages of FROM_WORKER
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
                    sys.executable,
                    "-P",
                    "-m",
                    "mmsup.worker",
                    *[f"{name}={fd}" for name, fd in inherited.items()],
                    "label",
                ],
                env={"PATH": os.environ["PATH"]},
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
        boot = ConfigureWorker(wire, 7, 1, self.address, spec, data_limit_bytes, 1 << 30)
        assert self.control.send(encode(boot))
        self.hub = ZmqContext()
        self.gateways: list[Gateway] = []

    def hear(self) -> Any:  # one of FROM_WORKER; None at the end
        """The worker's next word on the control channel."""
        deadline = time.monotonic() + PATIENCE_S
        while wait_readable(self.control.fileno(), deadline):
            try:
                received = self.control.receive()
            except Exception:  # noqa: BLE001 - Closed, or whatever; the end of it
                return None
            if received is not None:
                self.said.append(decode(received[0], FROM_WORKER))
                return self.said[-1]
        raise AssertionError(f"nothing within {PATIENCE_S} s; said {self.said}, printed {self.printed()}")

    def ready(self) -> Metadata:
        """Wait until it serves."""
        while True:
            message = self.hear()
            assert isinstance(message, (Hello, LoadProgress, WorkerReady)), f"{message}; printed {self.printed()}"
            if isinstance(message, WorkerReady):
                return message.metadata

    def failed(self) -> LoadFailed:
        """Wait until it says that it cannot load."""
        while True:
            message = self.hear()
            assert isinstance(message, (Hello, LoadProgress, LoadFailed)), f"{message}; printed {self.printed()}"
            if isinstance(message, LoadFailed):
                return message

    def ended(self) -> int:
        """Wait for its exit; the status, negative for a signal."""
        return self.process.wait(PATIENCE_S)

    def printed(self) -> str:
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
        """What its page says."""
        return self.page.read()

    def gateway(self, place: int = 0, generation: int = 1, *, attached: bool = True) -> Gateway:
        """A gateway, told to the worker unless the test says otherwise."""
        gateway = Gateway(self, place, f"g{place}.{generation}".encode())
        self.gateways.append(gateway)
        if attached:
            gateway.attach()
        return gateway

    def stop(self) -> None:
        """Ask for an orderly end."""
        assert self.control.send(encode(StopWorker()))

    def __enter__(self) -> Life:
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


class Gateway:
    """One gateway's side: a socket pair, an arena, a DEALER if that carries the requests."""

    def __init__(self, life: Life, place: int, identity: bytes) -> None:
        self.life = life
        self.place = place
        self.identity = identity
        self.pair: DataChannel | None = None
        self._dealer = life.hub.connect(life.address, identity) if life.address else None
        self.requests = ArenaSide(writable_by_worker=False)
        self.results = ArenaSide(writable_by_worker=True)
        self.ids = itertools.count(1 << 40)
        self._segments = itertools.count()
        self._replies: list[InferReply] = []

    @property
    def end(self) -> DataChannel | ZmqGatewayChannel:
        """What frames go over."""
        if self._dealer is not None:
            return self._dealer
        assert self.pair is not None, "it is not attached"
        return self.pair

    def attach(self) -> None:
        """Be told to the worker."""
        self.pair = self.attach_again(self.identity)

    def attach_again(self, identity: bytes) -> DataChannel:
        """Be told to the worker with one more pair; our end of it."""
        ours, theirs = ControlChannel.pair()
        assert self.life.control.send(encode(AttachGateway(self.place, identity)), [theirs.fileno()])
        theirs.close()
        return DataChannel(ours.detach())

    def extent(self, side: ArenaSide, size: int = 1 << 20) -> Extent:
        """A new extent, announced."""
        extent = Extent(next(self._segments), size, writable_by_worker=side.writable_by_worker)
        side.add(extent)
        message = AttachExtent(extent.segment, extent.size, extent.writable_by_worker)
        assert self.pair is not None
        assert self.pair.send(pack_frame([message]), [extent.fd])
        return extent

    def slot(self, side: ArenaSide, size: int) -> Slot:
        """Room in an extent, made if there is none."""
        slot = side.allocate(size)
        if slot is None:
            self.extent(side, max(1 << 20, -(-size // 4096) * 4096 * 2))
            slot = side.allocate(size)
        assert slot is not None
        return slot

    def laid(self, array: Array) -> TensorLocation:
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
        grant: Slot | None = None,
        deadline_s: float = PATIENCE_S,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        alone: bool = False,
    ) -> Infer:
        """A request, not yet sent."""
        specs = tuple(TensorSpec(name, datatype_of(array) or "", array.shape) for name, array in inputs.items())
        words = pack_signature(InferSignature(specs, tuple(outputs), dict(parameters or {}), priority, alone))
        places = tuple(self.laid(array) for array in inputs.values())
        room = (grant.segment, grant.offset, grant.size) if grant else None
        return Infer(next(self.ids), words, time.monotonic_ns() + int(deadline_s * 1e9), room, places)

    def send(self, *records: DataRecord) -> None:
        """Send in one frame."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.end.send(pack_frame(records)):
            assert wait_readable(self.end.fileno(), deadline), "the worker's socket is not there"

    def reply(self) -> InferReply:
        """The next reply."""
        reply = self.reply_within(PATIENCE_S)
        assert reply is not None, f"no reply; printed {self.life.printed()}"
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

    def ask(self, inputs: Mapping[str, Array], *, outputs: Sequence[str] = (), grant: Slot | None = None) -> InferReply:
        """Send a request and wait for its reply."""
        request = self.infer(inputs, outputs=outputs, grant=grant)
        self.send(request)
        reply = self.reply()
        assert reply.id == request.id
        return reply

    def array(self, reply: InferReply, name: str) -> Array:
        """One output of a reply, wherever it lies."""
        assert not reply.code, reply
        specs = unpack_reply_signature(reply.signature).outputs
        ((spec, place),) = [pair for pair in zip(specs, reply.locations, strict=True) if pair[0].name == name]
        data = self.results.view(*place) if isinstance(place, tuple) else bytes(place)
        assert data is not None
        return as_array(data, spec.datatype, spec.shape)

    def close(self) -> None:
        """Go away, as a gateway that dies does."""
        if self._dealer is not None:
            self._dealer.close()
        if self.pair is not None:
            self.pair.close()
            self.pair = None
        self.requests.close()
        self.results.close()


@contextlib.contextmanager
def serving(spec: ModelSpec, folder: Path, *, zeromq: bool = False) -> Iterator[tuple[Life, Gateway]]:
    """A worker that is ready, and one gateway."""
    with Life(spec, folder, zeromq=zeromq) as life:
        life.ready()
        yield life, life.gateway()
