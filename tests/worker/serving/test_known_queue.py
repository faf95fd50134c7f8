"""Requests known by their bytes: they are answered as ordinary ones are, byte for byte, whatever comes between them."""

from __future__ import annotations

import gc
import itertools
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgpack
import numpy as np
import pytest

from engines.in_process_worker import Clock, InProcessWorker
from mmsup.ipc.messages.data import Cancel, GrantBuffer, Infer, InferReply, InferSignature
from mmsup.ipc.specs import Batching, QueuePolicy, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import FRAME_RECORDS, RESULT, pack_signature, plain_record
from mmsup.worker.serving.known_queue import KnownQueue

INPUTS = (TensorSpec("x", "FP32", (-1, -1)), TensorSpec("w", "INT32", (-1, 1), optional=True))
OUTPUTS = (TensorSpec("y", "FP32", (-1, -1)), TensorSpec("z", "INT32", (-1, -1)), TensorSpec("t", "BYTES", (-1, 1)))
"""With the first axis, which is the batch axis where the model batches."""
SLOW_NS = 2_000_000
"""Longer than runs may take that share a reply frame."""
MINUTE_NS = 60 * 10**9

PLAIN, RAISES, SLOW, OTHER_DTYPE, MISSING, OTHER_SHAPE, LARGE, STRIDED, ACTS = range(9)
"""What the model does, by the first element of `x`."""


def signature(elements: int = 4, outputs: tuple[str, ...] = ("y", "z"), *, w: bool = False, **more: Any) -> bytes:
    """One row: of a model with a batch axis if the test's model has one."""
    inputs = [TensorSpec("x", "FP32", (1, elements))]
    if w:
        inputs.append(TensorSpec("w", "INT32", (1, 1)))
    return pack_signature(InferSignature(tuple(inputs), outputs, more.pop("parameters", {}), **more))


FOUR = signature()


class Scene:
    """One worker, and what a script does to it. Ids and times are the same for each scene of the same script."""

    def __init__(self, clock: Clock, *, use_known_requests: bool, **options: Any) -> None:
        clock.now_ns = 10**12
        self.clock = clock
        self.ids = itertools.count(1 << 40)
        self.seen: list[Any] = []
        """Inputs of each run, and all frames in the order in which they came."""
        self.during: list[Callable[[], None]] = []
        """What happens while the model runs a request that `ACTS`."""
        inputs, outputs = [*INPUTS], [*OUTPUTS]
        if options.get("max_batch_size"):
            inputs, outputs = ([replace(each, shape=each.shape[1:]) for each in specs] for specs in (INPUTS, OUTPUTS))
        options |= {"clock": clock, "gateways": 2, "use_known_requests": use_known_requests}
        self.worker = InProcessWorker(self.model, inputs, outputs, **options)

    def model(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        rows = len(x)
        self.seen.append({name: (array.tobytes(), array.shape, array.dtype.str) for name, array in inputs.items()})
        self.clock.now_ns += 1000
        act, more = int(x[0, 0]), int(x[0, 1])
        y, z, t = x * np.float32(2), x.astype(np.int32), np.array([[b"text"]] * rows, object)
        if act == RAISES:
            raise ValueError("asked to raise")
        if act == SLOW:
            self.clock.now_ns += SLOW_NS
        if act == OTHER_DTYPE:
            return {"y": y.astype(np.float64), "z": z, "t": t}
        if act == MISSING:
            return {"z": z, "t": t}
        if act == OTHER_SHAPE:
            y = np.ones((rows, more), np.float32)
        if act == LARGE:
            y = np.ones((rows, 2000), np.float32)
        if act == STRIDED:
            y = np.ones((8, rows), np.float32)[::2].T
        if act == ACTS and self.during:
            self.during.pop(0)()
        return {"y": y, "z": z, "t": t}

    def infer(
        self, act: float = PLAIN, more: float = 0.0, packed: bytes = FOUR, *, left_ns: int = MINUTE_NS, number: int = 0
    ) -> Infer:
        elements = 7 if b"\x07" in packed else 4
        x = np.array([act, more, *range(elements - 2)], np.float32).tobytes()
        places = (x, np.int32(5).tobytes()) if b"\xa1w" in packed else (x,)
        return Infer(number or next(self.ids), packed, self.clock.now_ns + left_ns, None, places)

    def send(self, *records: Any, place: int = 0) -> None:
        """One frame; a record is a message or a plain list."""
        plain = [each if isinstance(each, list) else plain_record(each) for each in records]
        self.send_bytes(msgpack.packb(plain), place)

    def send_bytes(self, frame: bytes, place: int = 0) -> None:
        end = self.worker.ends[place]
        if end is not None:
            assert end.send(frame)

    def run(self) -> None:
        self.worker.run()
        self.seen += [self.worker.frames(0), self.worker.frames(1)]

    def know(self, *packed: bytes) -> None:
        """Have these signatures known."""
        for each in packed or (FOUR,):
            self.send(self.infer(packed=each))
            self.run()

    def outcome(self) -> Any:
        progress = self.worker.page.read()
        return self.seen, self.worker.page.started(), progress.requests, progress.batches, progress.activity


Script = Callable[[Scene], None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests were taken as known, frame by frame."""
    found: list[int] = []
    take = KnownQueue.take

    def counted(self: KnownQueue, link: Any, records: list[Any], now_ns: int) -> bool:
        is_taken = take(self, link, records, now_ns)
        found.append(len(records) if is_taken else 0)
        return is_taken

    monkeypatch.setattr(KnownQueue, "take", counted)
    return found


def outcomes(script: Script, clock: Clock, **options: Any) -> tuple[Any, Any]:
    """What comes of a script with known requests, and without."""
    found = []
    for use in (True, False):
        scene = Scene(clock, use_known_requests=use, **options)
        with scene.worker:
            script(scene)
            found.append(scene.outcome())
    return found[0], found[1]


# Scripts. Each begins with requests that are known.


def plain(scene: Scene) -> None:
    scene.know()
    scene.send(*[scene.infer(more=each) for each in range(9)])
    scene.run()


def two_inputs_and_two_signatures(scene: Scene) -> None:
    other = signature(7, ("z",), w=True)
    scene.know(FOUR, other)
    scene.send(*[scene.infer(more=each, packed=(FOUR, other)[each % 2]) for each in range(8)])
    scene.run()


def many_in_several_frames_of_both_gateways(scene: Scene) -> None:
    scene.know()
    for _ in range(7):
        for place in (0, 1):
            scene.send(*[scene.infer() for _ in range(FRAME_RECORDS)], place=place)
    scene.run()


def many_replies_that_fill_more_than_a_frame_by_bytes(scene: Scene) -> None:
    packed = signature(4, ("y",))
    scene.know(packed)
    for _ in range(3):
        scene.send(*[scene.infer(OTHER_SHAPE, 1000, packed) for _ in range(FRAME_RECORDS)])
        scene.run()


def slow_runs(scene: Scene) -> None:
    scene.know()
    scene.send(*[scene.infer(each) for each in (PLAIN, SLOW, PLAIN, SLOW, SLOW, PLAIN)])
    scene.run()


def failures_between_good_ones(scene: Scene) -> None:
    scene.know()
    acts = (PLAIN, RAISES, PLAIN, OTHER_DTYPE, PLAIN, MISSING, PLAIN, STRIDED, PLAIN)
    scene.send(*[scene.infer(each) for each in acts])
    scene.run()


def outputs_of_varying_shape(scene: Scene) -> None:
    scene.know()
    scene.send(*[scene.infer(OTHER_SHAPE, each) for each in (3, 3, 4, 0, 4, 1000, 4, 2000, 4)], scene.infer())
    scene.run()


def outputs_that_need_a_buffer(scene: Scene) -> None:
    scene.know()
    first, wants = scene.infer(), scene.infer(LARGE)
    scene.send(first, wants, scene.infer())
    scene.run()
    scene.send(scene.infer(), Cancel(wants.id), scene.infer())
    scene.run()


def deadlines_that_passed(scene: Scene) -> None:
    scene.know()
    scene.send(scene.infer(), scene.infer(left_ns=0), scene.infer(SLOW), scene.infer(left_ns=SLOW_NS), scene.infer())
    scene.run()


def a_cancel_in_the_same_frame(scene: Scene) -> None:
    scene.know()
    waits, last = scene.infer(), scene.infer()
    scene.send(waits)
    scene.send(last, Cancel(last.id), Cancel(waits.id))
    scene.send(scene.infer())
    scene.run()


def a_cancel_while_another_runs(scene: Scene) -> None:
    scene.know()
    first, slow, waits, stays = scene.infer(ACTS), scene.infer(SLOW), scene.infer(), scene.infer()
    scene.during.append(lambda: scene.send(Cancel(waits.id), Cancel(first.id)))
    scene.send(first, slow, waits, stays)
    scene.run()


def a_higher_priority_while_others_wait(scene: Scene) -> None:
    urgent = signature(priority=1)
    scene.know(FOUR, urgent)
    scene.during.append(lambda: scene.send(scene.infer(packed=urgent), scene.infer(), place=1))
    scene.send(scene.infer(ACTS), scene.infer(SLOW), scene.infer(SLOW), scene.infer(SLOW))
    scene.run()


def one_that_runs_alone_while_others_wait(scene: Scene) -> None:
    alone = signature(runs_alone=True)
    scene.know(FOUR, alone)
    scene.send(scene.infer(), scene.infer(packed=alone), scene.infer(packed=alone), scene.infer())
    scene.run()
    scene.during.append(lambda: scene.send(scene.infer(packed=alone), scene.infer()))
    scene.send(scene.infer(ACTS), scene.infer(SLOW), scene.infer(), scene.infer(SLOW), scene.infer())
    scene.run()


def known_ones_behind_one_that_is_not(scene: Scene) -> None:
    scene.know()
    new = signature(4, ("y",), parameters={"k": 1})
    scene.send(scene.infer())
    scene.send(scene.infer(), scene.infer(packed=new), scene.infer())
    scene.send(scene.infer(), place=1)
    scene.send(scene.infer(packed=new), scene.infer())
    scene.run()


def others_that_come_while_a_lone_one_runs(scene: Scene) -> None:
    scene.know()
    scene.during.append(lambda: scene.send(scene.infer(), scene.infer()))
    scene.send(scene.infer(ACTS))
    scene.run()
    scene.send(scene.infer())
    scene.run()


def duplicates(scene: Scene) -> None:
    scene.know()
    one = scene.infer()
    for _ in range(3):
        scene.send(one)
    scene.run()
    one = scene.infer()
    scene.send(one)
    scene.send(one, scene.infer(), one)
    scene.send(one)
    scene.send(one, place=1)
    scene.run()
    scene.send(one, scene.infer(number=one.id - 1))
    scene.run()


def records_that_are_malformed(scene: Scene) -> None:
    scene.know()

    def good() -> list[Any]:
        return [*plain_record(scene.infer())]

    for at, wrong in [
        (0, 9),
        (0, []),
        (1, "1"),
        (1, 1.0),
        (2, "text"),
        (2, []),
        (3, None),
        (4, 5),
        (5, 5),
        (5, "x" * 16),
    ]:
        scene.send(scene.infer())
        bad = good()
        bad[at] = wrong
        scene.send(bad)
        scene.send(scene.infer())
        scene.run()
    for bad in ([], good()[:4], good()[:5], [*good(), b"more"], [*good()[:5], b"short"], [*good()[:5], [9, 0, 16]]):
        scene.send(bad)
        scene.send(scene.infer(), [*good()[:5], b"short"])
        scene.run()
    scene.send([*good()[:4], [9, 0, 16], bytes(16)])
    scene.run()
    scene.send(*[scene.infer() for _ in range(FRAME_RECORDS + 1)])
    scene.send_bytes(b"\xc1")
    scene.send_bytes(b"\x05")
    scene.send()
    scene.send(InferReply(3), GrantBuffer(4, 0, 0, 0), scene.infer())
    scene.run()


def a_gateway_that_goes_while_its_requests_wait(scene: Scene) -> None:
    scene.know()
    scene.during.append(lambda: scene.worker.drop(1))
    scene.send(scene.infer(ACTS), scene.infer(SLOW))
    scene.send(*[scene.infer(SLOW, each) for each in range(4)], place=1)
    scene.send(scene.infer(PLAIN, 9))
    scene.run()
    scene.send(scene.infer())
    scene.run()


SCRIPTS: list[Script] = [
    plain,
    two_inputs_and_two_signatures,
    many_in_several_frames_of_both_gateways,
    many_replies_that_fill_more_than_a_frame_by_bytes,
    slow_runs,
    failures_between_good_ones,
    outputs_of_varying_shape,
    outputs_that_need_a_buffer,
    deadlines_that_passed,
    a_cancel_in_the_same_frame,
    a_cancel_while_another_runs,
    a_higher_priority_while_others_wait,
    one_that_runs_alone_while_others_wait,
    known_ones_behind_one_that_is_not,
    others_that_come_while_a_lone_one_runs,
    duplicates,
    records_that_are_malformed,
    a_gateway_that_goes_while_its_requests_wait,
]


KINDS: dict[str, dict[str, Any]] = {
    "single": {},
    "batching": {"max_batch_size": 8},
    "waiting": {"max_batch_size": 8, "batching": Batching(delay_s=0.003)},
    "aiming": {"max_batch_size": 8, "batching": Batching(objective_s=0.01, preferred=(2, 4))},
}
"""Options of models, by how their requests are run."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda each: each.__name__)
def test_known_requests_are_answered_as_ordinary_ones(
    script: Script, kind: str, clock: Clock, taken: list[int]
) -> None:
    known, ordinary = outcomes(script, clock, **KINDS[kind])
    assert known == ordinary
    assert sum(taken), "none was known, so nothing was compared"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_any_sequence_of_records_has_the_same_outcome(seed: int, kind: str, clock: Clock, taken: list[int]) -> None:
    known, ordinary = outcomes(lambda scene: any_sequence(scene, random.Random(seed)), clock, **KINDS[kind])
    assert known == ordinary
    assert sum(taken), "none was known, so nothing was compared"


SIGNATURES = (
    *[FOUR] * 6,
    signature(7, ("z",), w=True),
    signature(7, ("y",)),
    signature(4, ()),
    signature(priority=1),
    signature(priority=90),
    signature(runs_alone=True),
    signature(parameters={"k": 1}),
)


def any_sequence(scene: Scene, chance: random.Random) -> None:
    scene.know(*SIGNATURES)
    sent: list[Infer] = [scene.infer()]

    def any_record() -> Any:
        kind = chance.random()
        if kind < 0.02:
            return Cancel(chance.choice(sent[-20:]).id)
        if kind < 0.03:
            return chance.choice(sent[-20:])
        if kind < 0.035:
            return chance.choice([[7, 1], [], InferReply(5), GrantBuffer(chance.choice(sent).id, 0, 0, 64)])
        packed = chance.choice(SIGNATURES) if chance.random() < 0.1 else FOUR
        act = chance.choice((PLAIN, SLOW, ACTS, RAISES, OTHER_DTYPE, OTHER_SHAPE, STRIDED)) if kind < 0.2 else PLAIN
        left_ns = chance.choice((0, SLOW_NS, MINUTE_NS)) if chance.random() < 0.05 else MINUTE_NS
        sent.append(scene.infer(act, chance.randrange(6), packed, left_ns=left_ns))
        return sent[-1]

    def any_frame() -> None:
        scene.send(*[any_record() for _ in range(chance.choice((1, 1, 2, 5, 30)))], place=chance.randrange(2))

    for _ in range(25):
        if chance.random() < 0.3:
            scene.during.append(any_frame)
        for _ in range(chance.choice((1, 1, 3))):
            any_frame()
        scene.run()
    scene.worker.drop(1)
    scene.run()


@pytest.mark.parametrize(
    ("options", "is_known"),
    [
        ({}, True),
        ({"priority": 3}, True),
        ({"queue_policies": (QueuePolicy(max_queue=5),)}, False),
        ({"queue_policies": (QueuePolicy(level=2, timeout_s=1.0),)}, False),
        ({"max_batch_size": 8, "batching": Batching(delay_s=0.003)}, True),
    ],
)
def test_requests_of_models_with_queue_policies_are_never_known(
    options: dict[str, Any], is_known: bool, clock: Clock, taken: list[int]
) -> None:
    known, ordinary = outcomes(plain, clock, **options)
    assert known == ordinary
    assert bool(sum(taken)) == is_known


def test_a_known_request_whose_arrays_find_no_memory_fails_alone(
    clock: Clock, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = np.ndarray, itertools.count()

    def short_of_memory(*arguments: Any) -> Array:
        if next(made) == 1:
            raise MemoryError
        return make(*arguments)

    def script(scene: Scene) -> None:
        scene.know()
        monkeypatch.setattr("mmsup.worker.serving.known_runner.np", SimpleNamespace(ndarray=short_of_memory))
        scene.send(*[scene.infer(more=each) for each in range(3)])
        scene.run()
        monkeypatch.undo()

    scene = Scene(clock, use_known_requests=True)
    with scene.worker:
        script(scene)
    replies = [
        reply for seen in scene.seen if isinstance(seen, list) for frame in seen for reply in msgpack.unpackb(frame)
    ]
    assert [reply[0] == RESULT for reply in replies] == [True, True, False, True]
    assert "ran out of memory" in replies[2][3]
    assert sum(taken) == 3


def test_memory_does_not_grow_with_known_requests(clock: Clock, taken: list[int]) -> None:
    scene = Scene(clock, use_known_requests=True)
    with scene.worker:
        scene.know()

        def blocks() -> int:
            for _ in range(20):
                scene.send(*[scene.infer() for _ in range(FRAME_RECORDS)])
                scene.run()
            scene.seen.clear()
            taken.clear()
            gc.collect()
            return sys.getallocatedblocks()

        first = blocks()
        assert blocks() < first + 100
