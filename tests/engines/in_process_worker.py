"""A worker's loop inside the test's own process: scripted gateways, a scripted engine, and a clock that only the engine
moves. So two of them that are given the same script can be compared byte by byte."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import pytest

from mmsup.ipc.memory.status_page import StatusPageReader, StatusPageWriter, make_status_page
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.worker.execution.engine import NO_BUFFERS, OutputBuffers
from mmsup.worker.execution.executor import Executor
from mmsup.worker.serving.loop import ServingLoop
from mmsup.worker.startup.controller_channel import WorkerControlChannel

Infer = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Clock:
    """`time.monotonic_ns`, which stands still unless told otherwise."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**12
        patch.setattr("time.monotonic_ns", lambda: self.now_ns)

    def advance(self, by_ns: int) -> None:
        self.now_ns += max(by_ns, 0)


class ScriptedEngine:
    """An engine that calls a function of the test."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer

    def load(self, spec: ModelSpec) -> Metadata:
        return Metadata("", spec.max_batch_size, spec.inputs, spec.outputs)

    def infer(
        self, inputs: Mapping[str, Array], wanted: Sequence[str], buffers: OutputBuffers = NO_BUFFERS
    ) -> Mapping[str, Array]:
        del buffers
        made = self._infer(inputs)
        return {name: made[name] for name in wanted if name in made}

    def shrink(self) -> None:
        pass

    def device_bytes(self) -> int:
        return 0

    def unload(self) -> None:
        pass


class InProcessWorker:
    """The loop with its gateways' ends. `run` handles what they have sent until nothing is left to do."""

    def __init__(
        self,
        infer: Infer,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        clock: Clock | None = None,
        gateways: int = 1,
        use_known_requests: bool = True,
        **options: Any,  # of ModelSpec
    ) -> None:
        spec = ModelSpec(
            "m", "1", "/", "model.py", "custom", "", inputs=tuple(inputs), outputs=tuple(outputs), **options
        )
        page = make_status_page()
        self.page = StatusPageReader(page)
        engine = ScriptedEngine(infer)
        executor = Executor(engine, spec, engine.load(spec), StatusPageWriter(page))
        self._control, theirs = ControlChannel.pair()
        self._lifeline = os.pipe()
        control = WorkerControlChannel(theirs, self._lifeline[0])
        self._theirs = theirs
        self.loop = ServingLoop(control, None, executor, executor._page, use_known_requests=use_known_requests)
        if clock is not None:
            self.loop._wait_for_requests = clock.advance  # type: ignore[method-assign, assignment] # nothing comes while it waits
        os.close(page)
        self.ends: list[DataChannel | None] = []
        for place in range(gateways):
            ours, other = ControlChannel.pair()
            assert self._control.send(encode(AttachGateway(place, b"g%d" % place)), [other.fileno()])
            other.close()
            self.ends.append(DataChannel(ours.detach()))
            self.loop.turn()

    def run(self) -> None:
        """Until all that has come is done."""
        handler = self.loop._handler
        while handler.queue.size or handler.known.waiting or select.select(list(self.loop._links.by_fd), [], [], 0)[0]:
            assert self.loop.turn()

    def frames(self, place: int) -> list[bytes]:
        """What came for a gateway since the last call."""
        end = self.ends[place]
        if end is None:
            return []
        received = iter(end.receive, None)
        return [bytes(frame) for frame in received if frame is not None]

    def drop(self, place: int) -> None:
        """The gateway is gone."""
        end = self.ends[place]
        if end is not None:
            end.close()
            self.ends[place] = None

    def __enter__(self) -> InProcessWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in range(len(self.ends)):
            self.drop(place)
        for link in list(self.loop._links.by_fd.values()):
            link.close()
        self._control.close()
        self._theirs.close()
        self.page.close()
        for fd in self._lifeline:
            os.close(fd)
