"""Times the worker's stages: its loop with an engine, receiving from and answering into a socket pair."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from drivers.mmsup import MODEL as SOURCE
from places import HERE

from inside.best import FEW, MANY, ONE, ROUNDS_PER_STAGE, BestTimes
from inside.gateway import MODEL, ORDINARY, X, Y
from mmsup.ipc.memory.status_page import StatusPageWriter, make_status_page
from mmsup.ipc.messages.data import Infer, InferReply, InferSignature, ReplySignature
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import (
    pack_frame,
    pack_records,
    pack_signature,
    plain_record,
    unpack_frame,
    unpack_records,
)
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.data_channel import FRAME_LIMIT_BYTES, DataChannel
from mmsup.worker.execution.engine import open_engine
from mmsup.worker.execution.executor import Executor
from mmsup.worker.serving.loop import ServingLoop
from mmsup.worker.startup.controller_channel import WorkerControlChannel

TURNS_A_ROUND = {MANY: 60, FEW: 120, ONE: 400}
_DATA = np.arange(16, dtype=np.float32).tobytes()
_REPLY = pack_signature(ReplySignature((Y,)))
_FIRST = 1 << 40
_NEVER_NS = 1 << 62


class InProcessWorker:
    """A worker with one gateway, in `folder`. Without known requests its stages are noted as those of ordinary ones."""

    def __init__(self, folder: Path, *, use_known_requests: bool = True) -> None:
        self._prefix = "" if use_known_requests else ORDINARY
        folder.mkdir()
        (folder / "model.py").write_text(SOURCE)
        shutil.copy(HERE / "apps" / "arithmetic.py", folder)
        options = {"model": "scale", "read_only_inputs": "true"}
        spec = ModelSpec(
            MODEL, "1", str(folder), "model.py", "custom", "python", inputs=(X,), outputs=(Y,), parameters=options
        )
        self._engine = open_engine(spec.engine)
        metadata = self._engine.load(spec)
        page = StatusPageWriter(make_status_page())
        self._ours, self._controller = ControlChannel.pair()
        self._lifeline = os.pipe()
        self._executor = Executor(self._engine, spec, metadata, page)
        control = WorkerControlChannel(self._ours, self._lifeline[0])
        self._loop = ServingLoop(control, None, self._executor, page, use_known_requests=use_known_requests)
        near, far = ControlChannel.pair()
        self._loop._links.attach(AttachGateway(0, b"g"), far.detach())
        self._gateway = DataChannel(near.detach())
        self._words = pack_signature(InferSignature((X,), (), {}))
        self._number = _FIRST
        self._outcome = self._engine.infer({X.name: np.frombuffer(_DATA, np.float32)}, [Y.name])

    def round(self, best: BestTimes) -> None:
        """Some iterations, some with a model that returns a prepared answer, and the parts."""
        self._exchanges(best, "serve")
        usual, ready = self._engine.infer, self._outcome
        self._engine.infer = lambda *_: ready  # type: ignore[method-assign] # of this object, temporarily
        self._exchanges(best, "serve, no model")
        self._engine.infer = usual  # type: ignore[method-assign] # as above
        if not self._prefix:
            self._parts(best)

    def _exchanges(self, best: BestTimes, stage: str) -> None:
        for count in ROUNDS_PER_STAGE:
            for _ in range(TURNS_A_ROUND[count]):
                self._exchange(best, stage, count)

    def _requests(self, count: int) -> list[Infer]:
        self._number += count
        return [
            Infer(number, self._words, _NEVER_NS, None, (_DATA,))
            for number in range(self._number, self._number + count)
        ]

    def _exchange(self, best: BestTimes, stage: str, count: int) -> None:
        loop, handler = self._loop, self._loop._handler
        assert self._gateway.send(pack_frame(self._requests(count))), "the pair is full"
        begin = time.perf_counter()
        loop._receive_all(0)
        heard = time.perf_counter()
        while handler.known.waiting or handler.queue.size:
            if handler.known.waiting:
                loop._run_known()
            else:
                loop._run_queued()
        end = time.perf_counter()
        self._check(count)
        best.note(f"{self._prefix}hear", count, heard - begin)
        best.note(f"{self._prefix}{stage}", count, end - heard)

    def _check(self, count: int) -> None:
        """Check that every request has its answer."""
        left = count
        while left:
            frame = self._gateway.receive()
            assert frame is not None, f"{left} of {count} requests were not answered"
            replies: list[InferReply] = unpack_frame(frame)
            assert all(each.signature for each in replies), replies[0].text
            left -= len(replies)

    def close(self) -> None:
        """Release everything."""
        for fd in [*self._loop._links.by_fd]:
            self._loop._links.detach(fd)
        self._gateway.close()
        self._controller.close()
        self._ours.close()
        for fd in self._lifeline:
            os.close(fd)

    def _parts(self, best: BestTimes) -> None:
        handler = self._loop._handler
        known = handler.known
        link = next(iter(self._loop._links.by_identity.values()))
        inputs, wanted = {X.name: np.frombuffer(_DATA, np.float32)}, (Y.name,)
        best.time("model", lambda: self._engine.infer(inputs, wanted))
        for count in ROUNDS_PER_STAGE:
            frame = pack_frame(self._requests(count))
            records = unpack_records(frame)
            replies = [
                [*plain_record(InferReply(_FIRST + each, "", "", _REPLY, (_DATA,), 0, 9_999, 999, 3_999, 999, 1))]
                for each in range(count)
            ]

            def take(records: list[Any] = records) -> None:
                known._newest.clear()
                assert known.take(link, records, 0), "these requests are not known"
                known.waiting.clear()

            best.time("requests unpacked", partial(unpack_records, frame), turn=count, requests=count)
            best.time("requests taken", take, turn=count, requests=count)
            best.time("replies packed", partial(pack_records, replies, FRAME_LIMIT_BYTES), turn=count, requests=count)
