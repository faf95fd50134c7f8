"""Batches that are gathered and scattered at once: they are run and answered as all others are, byte for byte."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pytest

from engines.in_process_worker import Clock, InProcessWorker
from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import pack_signature, plain_record, unpack_frame
from mmsup.worker.batching.batcher import BatchRule
from mmsup.worker.serving.inline_batch import InlineBatchRunner, gathered
from mmsup.worker.serving.pending_results import WorkerRequest
from request_double import queued, signature

INPUTS = (TensorSpec("x", "FP32", (3,)), TensorSpec("w", "INT32", (2,)), TensorSpec("b", "BYTES", (1,), optional=True))
OUTPUTS = (TensorSpec("y", "FP32", (-1,)), TensorSpec("z", "INT64", ()), TensorSpec("t", "BYTES", (1,), optional=True))
MAX_ROWS = 8

PLAIN, RAISES, OTHER_DTYPE, MISSING, OTHER_ROWS, LARGE, STRIDED, EMPTY, SCALAR, MORE = range(10)
"""What the model does, by the first element of any row of `x`: the highest one counts."""


class Scene:
    """One worker and its two gateways, and what its model and they have seen."""

    def __init__(self, clock: Clock, *, use_known_requests: bool = True) -> None:
        clock.now_ns = 10**12
        self.clock = clock
        self.ids = itertools.count(1 << 40)
        self.seen: list[Any] = []
        self.worker = InProcessWorker(
            self.model, INPUTS, OUTPUTS, gateways=2, max_batch_size=MAX_ROWS, use_known_requests=use_known_requests
        )

    def model(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x, w = inputs["x"], inputs["w"]
        self.seen.append({name: (array.tolist(), array.shape, array.dtype.str) for name, array in inputs.items()})
        self.clock.now_ns += 1000
        act, rows = int(x[:, 0].max()), len(x)
        y, z = x * np.float32(2), w.sum(axis=1).astype(np.int64)
        if act == RAISES:
            raise ValueError("asked to raise")
        if act == OTHER_DTYPE:
            y = y.astype(np.float64)
        elif act == MISSING:
            return {"z": z}
        elif act == OTHER_ROWS:
            y = y[:-1]
        elif act == LARGE:
            y = np.repeat(x, INLINE_LIMIT_BYTES // 8, axis=1)
        elif act == STRIDED:
            y = np.asfortranarray(np.repeat(x, 2, axis=1))[:, ::2]
        elif act == EMPTY:
            y = y[:, :0]
        elif act == SCALAR:
            z = np.int64(3)
        elif act == MORE:
            y = np.stack([x, -x], axis=1)
        return {"y": y, "z": z, "t": np.array([[b"text"]] * rows, object)}

    def infer(
        self,
        acts: Sequence[float],
        outputs: tuple[str, ...] = ("y", "z"),
        *,
        text: bytes = b"",
        buffer: tuple[int, int, int] | None = None,
        **fields: Any,
    ) -> Infer:
        """A request with a row for each of `acts`."""
        rows = len(acts)
        x = np.array([[act, *np.random.default_rng(rows).random(2)] for act in acts], np.float32)
        w = np.arange(2 * rows, dtype=np.int32)
        inputs = [TensorSpec("x", "FP32", (rows, 3)), TensorSpec("w", "INT32", (rows, 2))]
        data = [x.tobytes(), w.tobytes()]
        if text:
            inputs.append(TensorSpec("b", "BYTES", (rows, 1)))
            data.append((len(text).to_bytes(4, "little") + text) * rows)
        packed = pack_signature(InferSignature(tuple(inputs), outputs, {}, **fields))
        return Infer(next(self.ids), packed, self.clock.now_ns + 60 * 10**9, buffer, tuple(data))

    def send(self, *records: Infer, place: int = 0) -> None:
        end = self.worker.ends[place]
        assert end is not None
        assert end.send(msgpack.packb([plain_record(each) for each in records]))

    def run(self) -> None:
        self.worker.run()
        self.seen += [self.worker.frames(0), self.worker.frames(1)]

    def outcome(self) -> Any:
        progress = self.worker.page.read()
        return self.seen, self.worker.page.started(), progress.requests, progress.batches, progress.activity


Script = Callable[[Scene], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Counts:
    """Sizes of the batches that were gathered at once."""

    def __init__(self) -> None:
        self.ordinary: list[int] = []
        self.known: list[int] = []


def outcomes(script: Script, clock: Clock) -> tuple[Any, Any, Counts]:
    """What comes of a script with batches that are gathered at once, and without."""
    found, counts = [], Counts()
    run, run_waiting = InlineBatchRunner.run, InlineBatchRunner.run_waiting

    def counted(self: InlineBatchRunner, batch: Sequence[WorkerRequest], started_ns: int) -> bool:
        is_run = run(self, batch, started_ns)
        counts.ordinary.extend([len(batch)] * is_run)
        return is_run

    def counted_waiting(self: InlineBatchRunner, started_ns: int, rule: BatchRule) -> int:
        size = run_waiting(self, started_ns, rule)
        counts.known.extend([size] * (size > 0))
        return size

    for runner in (counted, lambda *_: False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(InlineBatchRunner, "run", runner)
            patch.setattr(InlineBatchRunner, "run_waiting", counted_waiting)
            scene = Scene(clock, use_known_requests=runner is counted)
            with scene.worker:
                script(scene)
                found.append(scene.outcome())
    return found[0], found[1], counts


@pytest.mark.parametrize("act", [PLAIN, STRIDED, EMPTY, MORE, LARGE, RAISES, OTHER_DTYPE, MISSING, OTHER_ROWS, SCALAR])
@pytest.mark.parametrize("outputs", [("y", "z"), ("z", "y"), ("y",), (), ("t", "y")])
@pytest.mark.parametrize("rows", [(1, 1, 1), (1, 3, 2)])
def test_a_batch_is_answered_as_if_it_were_stacked_of_its_parts(
    act: int, outputs: tuple[str, ...], rows: tuple[int, ...], clock: Clock
) -> None:
    def script(scene: Scene) -> None:
        acts = [[0.0] * each for each in rows]
        acts[1][0] = act
        scene.send(*[scene.infer(each, outputs) for each in acts])
        scene.run()

    at_once, of_parts, counts = outcomes(script, clock)
    assert at_once == of_parts
    assert counts.ordinary == [len(rows)]


@pytest.mark.parametrize("act", [PLAIN, STRIDED, EMPTY, MORE, LARGE, RAISES, OTHER_DTYPE, MISSING, OTHER_ROWS, SCALAR])
@pytest.mark.parametrize("outputs", [("y", "z"), ("z", "y"), ("y",), ()])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_batch_of_known_requests_is_answered_as_one_of_others(
    act: int, outputs: tuple[str, ...], rows: int, clock: Clock
) -> None:
    def script(scene: Scene) -> None:
        for _ in range(2):
            scene.send(*[scene.infer([0.0] * rows, outputs) for _ in range(3)])
            scene.run()
        acts = [[0.0] * rows for _ in range(6)]
        acts[1][0] = act
        scene.send(*[scene.infer(each, outputs) for each in acts[:2]])
        scene.send(*[scene.infer(each, outputs) for each in acts[2:]], place=1)
        scene.run()
        scene.send(*[scene.infer([0.0] * rows, outputs) for _ in range(3)])
        scene.run()

    at_once, of_parts, counts = outcomes(script, clock)
    assert at_once == of_parts
    assert bool(counts.known) is bool(outputs), "outputs of strings are never known"


def test_a_known_request_past_its_deadline_is_not_run_with_the_others(clock: Clock) -> None:
    def script(scene: Scene) -> None:
        scene.send(*[scene.infer([0.0]) for _ in range(3)])
        scene.run()
        late = scene.infer([0.0])
        late.deadline_ns = scene.clock.now_ns
        scene.send(scene.infer([0.0]), late, scene.infer([0.0]))
        scene.run()

    at_once, of_parts, counts = outcomes(script, clock)
    assert at_once == of_parts
    assert counts.ordinary[-1] == 2


def test_every_request_of_a_batch_gets_its_own_rows_and_one_that_fails_no_others(clock: Clock) -> None:
    scene = Scene(clock)
    with scene.worker:
        sent = [scene.infer(acts) for acts in ([0, 0], [RAISES], [PLAIN])]
        scene.send(*sent)
        scene.worker.run()
        replies = [each for frame in scene.worker.frames(0) for each in unpack_frame(frame)]
    assert [each.id for each in replies] == [each.id for each in sent]
    assert [each.code for each in replies] == ["", "inference_failed", ""]
    for request, reply in zip(sent, replies, strict=True):
        if not reply.code:
            expected = np.frombuffer(bytes(request.locations[0]), np.float32) * 2
            assert np.frombuffer(reply.locations[0], np.float32).tolist() == expected.tolist()
    assert [(each.batch, each.rows) for each in replies] == [(3, 4)] * 3


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_batches_has_the_same_outcome(seed: int, clock: Clock) -> None:
    def script(scene: Scene) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            odd = chance.choice((0.0, 0.0, 0.1))
            for _ in range(chance.choice((1, 1, 2))):
                place = chance.randrange(2)
                many = chance.choice((1, 2, 5, 30))
                scene.send(*[any_request(scene, chance, odd) for _ in range(many)], place=place)
            scene.run()

    at_once, of_parts, counts = outcomes(script, clock)
    assert at_once == of_parts
    assert counts.ordinary
    assert counts.known


def any_request(scene: Scene, chance: random.Random, odd: float) -> Infer:
    """`odd`: the share of requests that differ from the others in more than values."""
    rows = chance.choice((2, 3)) if chance.random() < odd else 1
    acts = [float(chance.randrange(10)) if chance.random() < 0.05 else 0.0 for _ in range(rows)]
    more: dict[str, Any] = {}
    if chance.random() < odd:
        more = chance.choice(
            [{"text": b"in"}, {"buffer": (1, 0, 64)}, {"outputs": ("t",)}, {"priority": 1}, {"runs_alone": True}]
        )
    request = scene.infer(acts, **more)
    if chance.random() < odd:
        request.deadline_ns = scene.clock.now_ns + chance.choice((-1, 500, 1500))
    return request


def double(*locations: Any, rows: int = 1, datatype: str = "FP32") -> WorkerRequest:
    request = queued(signature((TensorSpec("x", datatype, (rows, 2)),)))
    request.message = Infer(1, b"", 1 << 62, None, locations)
    return request


def test_inputs_are_gathered_in_order_of_the_requests() -> None:
    first, second = np.arange(2, dtype=np.float32), np.arange(2, 6, dtype=np.float32)
    inputs = gathered([double(first.tobytes()), double(second.tobytes(), rows=2)])
    assert inputs is not None
    assert inputs["x"].tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    "other",
    [
        double((1, 0, 8)),
        double(b"1234567"),
        double(b"123456789"),
        double(b"12345678", rows=2),
        double(b"\x01\0\0\0a\x01\0\0\0b", datatype="BYTES"),
    ],
    ids=["in shared memory", "too short", "too long", "of other rows", "strings"],
)
def test_inputs_are_not_gathered_if_one_is_not_whole_in_its_message(other: WorkerRequest) -> None:
    plain = double(b"12345678")
    assert gathered([plain, plain]) is not None
    assert gathered([plain, other]) is None
    assert gathered([other, plain]) is None


def test_inputs_are_not_gathered_if_one_request_has_a_buffer_for_its_outputs() -> None:
    request = double(b"12345678")
    request.message = Infer(1, b"", 1 << 62, (1, 0, 64), request.message.locations)
    assert gathered([double(b"12345678"), request]) is None
