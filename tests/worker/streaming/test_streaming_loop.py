"""A real worker whose class answers many times: order, fairness, back-pressure, cancelling, failures."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engines.build import write_python
from engines.real_worker import FakeGateway, RealWorker, serving
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.data import Cancel, GrantBuffer, InferReply, ResponsePart, StreamCredit
from mmsup.ipc.messages.stream_window import WINDOW_PARTS
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

TEXT = """
import pathlib
import time
import numpy as np

class Model:
    def infer(self, inputs):
        kind, count = int(inputs["kind"][0]), int(inputs["count"][0])
        try:
            for index in range(count):
                if kind == 1 and index == 2:
                    raise ValueError("part 2 is bad")
                if kind == 5 and index:
                    time.sleep(0.2)
                size = 4000 if kind == 2 else 1
                yield {"y": np.full(size, index, np.int32)}
        finally:
            if kind == 3:
                pathlib.Path("closed").touch()
"""
ASYNC = """
import asyncio
import pathlib
import time
import numpy as np

class Model:
    async def infer(self, inputs):
        kind, count = int(inputs["kind"][0]), int(inputs["count"][0])
        try:
            for index in range(count):
                if kind == 4 and index:
                    await asyncio.Event().wait()
                if kind == 6:
                    await asyncio.to_thread(time.sleep, 0.01)
                elif kind == 5:
                    time.sleep(0.2 if index else 0)
                else:
                    await asyncio.sleep(0.001)
                yield {"y": np.full(1, index, np.int32)}
        finally:
            if kind == 3:
                pathlib.Path("closed").touch()
"""
INPUTS = (TensorSpec("kind", "INT32", (1,)), TensorSpec("count", "INT32", (1,)))
OUTPUTS = (TensorSpec("y", "INT32", (-1,)),)


@pytest.fixture(scope="module", params=[TEXT, ASYNC], ids=["generator", "async"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RealWorker, FakeGateway]]:
    folder = tmp_path_factory.mktemp("mmsup_streams")
    spec = replace(write_python(folder / "repository", "m", request.param, INPUTS, OUTPUTS), hang_limit_s=1.0)
    with serving(spec, folder) as found:
        yield found


def ask(gateway: FakeGateway, kind: int, count: int) -> int:
    request = gateway.infer({"kind": np.array([kind], np.int32), "count": np.array([count], np.int32)})
    gateway.send(request)
    return request.id


def parts_of(gateway: FakeGateway, number: int) -> tuple[list[int], InferReply]:
    """The first element of each part, each taken when it comes, and the end."""
    found: list[int] = []
    while isinstance(reply := gateway.reply(), ResponsePart):
        assert reply.id == number
        assert reply.sequence == len(found)
        found.append(int(gateway.array(reply, "y")[0]))
        gateway.send(StreamCredit(number, len(found)))
    return found, reply


def is_soon_idle(worker: RealWorker) -> bool:
    until_s = time.monotonic() + 5
    while worker.progress().activity is not Activity.IDLE and time.monotonic() < until_s:
        time.sleep(0.01)
    return worker.progress().activity is Activity.IDLE


def test_parts_come_in_order_and_one_reply_without_outputs_ends_them(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    assert worker.received[-1].metadata.decoupled
    for count in (0, 1, 50):
        found, end = parts_of(gateway, ask(gateway, 0, count))
        assert found == list(range(count))
        assert (end.code, end.locations) == ("", ())


def test_a_part_goes_out_before_the_next_one_is_computed(served: tuple[RealWorker, FakeGateway]) -> None:
    _, gateway = served
    ask(gateway, 5, 3)
    came_s = []
    while isinstance(gateway.reply(), ResponsePart):
        came_s.append(time.monotonic())
    assert [after - before > 0.1 for before, after in pairwise(came_s)] == [True, True]


def test_streams_take_turns(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    worker.process.send_signal(signal.SIGSTOP)
    numbers = [ask(gateway, 0, 8) for _ in range(3)]
    worker.process.send_signal(signal.SIGCONT)
    order: list[int] = []
    ended = 0
    while ended < 3:
        reply = gateway.reply()
        if isinstance(reply, ResponsePart):
            order.append(reply.id)
        else:
            ended += 1
    assert sorted(order) == sorted(numbers * 8)
    assert set(order[:12]) == set(numbers), "one of them went ahead of the others"


def test_a_reader_that_takes_nothing_stops_the_model_at_the_window_and_goes_on_later(
    served: tuple[RealWorker, FakeGateway],
) -> None:
    _, gateway = served
    number = ask(gateway, 0, 3 * WINDOW_PARTS)
    got = [gateway.reply() for _ in range(WINDOW_PARTS)]
    other = ask(gateway, 0, 1)  # answered meanwhile
    assert [gateway.reply().id for _ in range(2)] == [other, other]
    assert gateway.reply_within(0.05) is None
    gateway.send(StreamCredit(number, 5))
    got += [gateway.reply() for _ in range(5)]
    assert [each.sequence for each in got if isinstance(each, ResponsePart)] == list(range(WINDOW_PARTS + 5))
    assert gateway.reply_within(0.05) is None
    gateway.send(Cancel(number))
    assert gateway.reply().code == "cancelled"


def test_a_stream_that_is_cancelled_closes_its_generator(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    number = ask(gateway, 3, 1000)
    gateway.reply()
    gateway.send(Cancel(number))
    while isinstance(reply := gateway.reply(), ResponsePart):
        pass
    assert (reply.id, reply.code) == (number, "cancelled")
    assert Path(worker.spec.directory, "closed").exists()


def test_a_worker_whose_last_stream_has_ended_is_idle(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    parts_of(gateway, ask(gateway, 6, 2))  # an end that a thread has woken the loop for
    assert is_soon_idle(worker)
    number = ask(gateway, 0, 1000)  # one that the gateway asks for, while it waits for its reader
    while isinstance(gateway.reply(), ResponsePart):
        gateway.send(Cancel(number))
    assert is_soon_idle(worker)


def test_a_gateway_that_dies_with_open_streams_leaves_the_worker_to_others(
    served: tuple[RealWorker, FakeGateway],
) -> None:
    worker, gateway = served
    other = worker.gateway(1)
    ask(other, 0, 1000)
    assert isinstance(other.reply(), ResponsePart)
    other.close()
    assert parts_of(gateway, ask(gateway, 0, 2))[0] == [0, 1]
    assert is_soon_idle(worker)
    assert parts_of(gateway, ask(gateway, 0, 2))[0] == [0, 1]


def test_a_failure_ends_the_stream_after_its_parts(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    if "async" in Path(worker.spec.directory, "model.py").read_text():
        pytest.skip("the generator shows it")
    found, end = parts_of(gateway, ask(gateway, 1, 5))
    assert found == [0, 1]
    assert (end.code, end.text) == ("inference_failed", "model 'm' failed: part 2 is bad")


def test_large_parts_go_through_a_buffer_one_at_a_time(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    if "async" in Path(worker.spec.directory, "model.py").read_text():
        pytest.skip("the generator shows it")
    number = ask(gateway, 2, 3)
    wanted = gateway.reply()
    assert isinstance(wanted, ResponsePart)
    assert wanted.needed_bytes >= 16000
    slot = gateway.slot(gateway.results, wanted.needed_bytes)
    gateway.send(GrantBuffer(number, slot.segment, slot.offset, slot.size))
    for index in range(3):
        part = gateway.reply()
        assert gateway.array(part, "y").tolist() == [index] * 4000
        assert gateway.reply_within(0.02) is None, "it wrote to a buffer that is read"
        gateway.send(StreamCredit(number, index + 1))
    assert gateway.reply().code == ""


def test_a_stream_that_awaits_for_ever_ends_and_its_worker_goes_on(served: tuple[RealWorker, FakeGateway]) -> None:
    worker, gateway = served
    if "async" not in Path(worker.spec.directory, "model.py").read_text():
        pytest.skip("a generator that waits is a hang of its worker")
    began_s = time.monotonic()
    found, end = parts_of(gateway, ask(gateway, 4, 5))
    assert found == [0]
    assert end.code == "deadline_exceeded"
    assert time.monotonic() - began_s >= 1.0
    assert parts_of(gateway, ask(gateway, 0, 2))[0] == [0, 1]
