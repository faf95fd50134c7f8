"""The worker's stages: the real loop with a real engine, hearing from a real socket pair and answering into it."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
from drivers.mmsup import MODEL as SOURCE
from places import HERE

from inside.best import FEW, MANY, ONE, TURNS, Best
from inside.gateway import MODEL, X, Y
from mmsup.ipc.memory.status_page import PageWriter, make_page
from mmsup.ipc.messages.data import Form, Infer, Reply
from mmsup.ipc.messages.worker_control import Attach
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import pack_frame, pack_words, unpack_frame
from mmsup.ipc.transport.control_channel import Seqpacket
from mmsup.ipc.transport.data_channel import PairEnd
from mmsup.worker.batching.batcher import Work
from mmsup.worker.execution.engine import open_engine
from mmsup.worker.execution.executor import Execution
from mmsup.worker.serving.loop import Loop
from mmsup.worker.startup.controller_channel import Control

TURNS_A_ROUND = {MANY: 60, FEW: 120, ONE: 400}
_DATA = np.arange(16, dtype=np.float32).tobytes()
_FIRST = 1 << 40
_NEVER_NS = 1 << 62


class Worker:
    """One gateway's worker, in `folder`."""

    def __init__(self, folder: Path) -> None:
        (folder / "model.py").write_text(SOURCE)
        shutil.copy(HERE / "apps" / "arithmetic.py", folder)
        options = {"model": "scale", "read_only_inputs": "true"}
        spec = ModelSpec(
            MODEL, "1", str(folder), "model.py", "custom", "python", inputs=(X,), outputs=(Y,), parameters=options
        )
        self._engine = open_engine(spec.engine)
        metadata = self._engine.load(spec)
        page = PageWriter(make_page())
        ours, self._brain = Seqpacket.pair()
        lifeline, self._keeper = os.pipe()
        self._execution = Execution(self._engine, spec, metadata, page)
        self._loop = Loop(Control(ours, lifeline), None, self._execution, page)
        near, far = Seqpacket.pair()
        self._loop._links.attach(Attach(0, b"g"), far.detach())
        self._gateway = PairEnd(near.detach())
        self._words = pack_words(Form((X,), (), {}))
        self._number = _FIRST
        self._outcome = self._engine.infer({X.name: np.frombuffer(_DATA, np.float32)}, [Y.name])

    def round(self, best: Best) -> None:
        """Some turns, some with a model that has its answer ready, and the parts."""
        self._turns(best, "serve")
        usual, ready = self._engine.infer, self._outcome
        self._engine.infer = lambda *_: ready  # type: ignore[method-assign] # of this object, for a while
        self._turns(best, "serve, no model")
        self._engine.infer = usual  # type: ignore[method-assign] # as above
        self._parts(best)

    def _turns(self, best: Best, stage: str) -> None:
        for count in TURNS:
            for _ in range(TURNS_A_ROUND[count]):
                self._turn(best, stage, count)

    def _requests(self, count: int) -> list[Infer]:
        self._number += count
        return [
            Infer(number, self._words, _NEVER_NS, None, (_DATA,))
            for number in range(self._number, self._number + count)
        ]

    def _turn(self, best: Best, stage: str, count: int) -> None:
        loop = self._loop
        assert self._gateway.send(pack_frame(self._requests(count))), "the pair is full"
        begin = time.perf_counter()
        loop._hear(0)
        heard = time.perf_counter()
        while loop._desk.waiting:
            loop._serve()
        end = time.perf_counter()
        self._check(count)
        best.note("hear", count, heard - begin)
        best.note(stage, count, end - heard)

    def _check(self, count: int) -> None:
        """Every request has its answer."""
        left = count
        while left:
            frame = self._gateway.receive()
            assert frame is not None, f"{left} of {count} requests were not answered"
            replies: list[Reply] = unpack_frame(frame)
            assert all(each.words for each in replies), replies[0].text
            left -= len(replies)

    def _parts(self, best: Best) -> None:
        desk, execution = self._loop._desk, self._execution
        link = next(iter(self._loop._links._by_identity.values()))
        request = self._requests(1)[0]
        kind = desk._kinds.of(request.words)
        work = Work(link, request, kind, 0, desk.waiting.own_level)
        job = desk._job(work)
        assert isinstance(job, dict), job.text
        outcome = execution.run_once(job)
        assert isinstance(outcome, dict), outcome.text

        small = desk._outlines.inline(outcome)
        assert small is not None, "the output is large"
        words, places = small

        def admit() -> None:
            desk.take_in(link, request, 0)
            desk.waiting.remove(work)

        def answer() -> None:
            desk._outlines.inline(outcome)
            Reply(request.id, "", "", words, places, 0, 1, 1, 1, 1, 1)

        wanted = (Y.name,)
        best.time("queue", admit)
        best.time("job", lambda: desk._job(work))
        best.time("run", lambda: execution.run_once(job))
        best.time("model", lambda: self._engine.infer(job, wanted))
        best.time("answer", answer)
        for count in TURNS:
            frame = pack_frame(self._requests(count))
            replies = [
                Reply(_FIRST + each, "", "", words, places, 0, 9_999, 999, 3_999, 999, 1) for each in range(count)
            ]
            best.time("requests unpacked", partial(unpack_frame, frame), turn=count, requests=count)
            best.time("replies packed", partial(pack_frame, replies), turn=count, requests=count)
