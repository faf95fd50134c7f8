"""Decoupled models of Triton's Python backend: what their senders send, from where and how long."""

from __future__ import annotations

import asyncio
import gc
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from engines.build import write_python
from engines.real_worker import serving
from mmsup.ipc.messages.data import Cancel, InferReply, ResponsePart, StreamCredit
from mmsup.ipc.specs import TRITON_PYTHON, ModelSpec, TensorSpec
from mmsup.worker.engines.triton_python.engine import TritonPythonEngine
from mmsup.worker.engines.triton_python.sent_responses import READY_RESPONSES
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.model_errors import RequestRefused

X = (TensorSpec("x", "INT32", (1,)),)
Y = (TensorSpec("y", "INT32", (1,)),)
WAIT_S = 20.0
HEAD = """
import asyncio
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def count(request):
    return int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])


def response(number):
    return pb_utils.InferenceResponse([pb_utils.Tensor("y", np.array([number], np.int32))])


class TritonPythonModel:
    go = threading.Event()
    seen = threading.Event()

"""
BY_THREAD = """
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request.get_response_sender(), count(request))).start()

    def answer(self, sender, number):
        for index in range(number):
            sender.send(response(index))
        sender.send(flags=FINAL)
"""
Load = Callable[[str], TritonPythonEngine]


def spec_of(folder: Path, methods: str) -> ModelSpec:
    code = HEAD + textwrap.indent(textwrap.dedent(methods), "    ")
    return replace(write_python(folder, "m", code, X, Y), interface=TRITON_PYTHON, decoupled=True)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    engines: list[TritonPythonEngine] = []

    def loaded(methods: str) -> TritonPythonEngine:
        engines.append(TritonPythonEngine())
        assert engines[-1].load(spec_of(tmp_path, methods)).decoupled
        return engines[-1]

    yield loaded
    for each in engines:
        each.unload()


def x(number: int) -> dict[str, Any]:
    return {"x": np.array([number], np.int32)}


def respond(engine: TritonPythonEngine, number: int) -> AsyncIterator[Arrays]:
    return cast("AsyncIterator[Arrays]", engine.respond(x(number), ("y",)))


async def numbers(responses: AsyncIterator[Arrays]) -> list[int]:
    return [int(each["y"][0]) async for each in responses]


def answers(engine: TritonPythonEngine, number: int) -> list[int]:
    return asyncio.run(asyncio.wait_for(numbers(respond(engine, number)), WAIT_S))


def test_a_thread_sends_any_number_of_responses_after_execute_has_returned(load: Load) -> None:
    engine = load(BY_THREAD)
    assert [answers(engine, each) for each in (0, 1, 3)] == [[], [0], [0, 1, 2]]


def test_more_responses_than_may_wait_come_in_order(load: Load) -> None:
    assert answers(load(BY_THREAD), READY_RESPONSES * 3) == [*range(READY_RESPONSES * 3)]


def test_what_execute_sends_comes_before_it_returns(load: Load) -> None:
    methods = """
        def execute(self, requests):
            sender = requests[0].get_response_sender()
            sender.send(response(1))
            self.go.wait()
            sender.send(response(2), flags=FINAL)
        """
    engine = load(methods)

    async def ask() -> list[int]:
        responses = respond(engine, 1)
        first = int((await anext(responses))["y"][0])
        engine._model.go.set()
        return [first, *await numbers(responses)]

    assert asyncio.run(asyncio.wait_for(ask(), WAIT_S)) == [1, 2]


def test_an_array_that_is_sent_may_be_written_to_afterwards(load: Load) -> None:
    methods = """
        def execute(self, requests):
            sender, array = requests[0].get_response_sender(), np.zeros(1, np.int32)
            for index in range(3):
                array[0] = index
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]))
            sender.send(flags=FINAL)
        """
    assert answers(load(methods), 1) == [0, 1, 2]


@pytest.mark.fault("F78")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return None", "without having asked for the response sender"),
        ("return [response(1)]", "execute of a decoupled model returns None"),
        ("requests[0].get_response_sender()", "dropped without TRITONSERVER_RESPONSE_COMPLETE_FINAL"),
        ("requests[0].get_response_sender().send()", "send needs a response"),
        ("requests[0].get_response_sender().send(response(1), 7)", "flags of send are 0 or"),
        ("raise ValueError('in between')", "in between"),
    ],
)
def test_an_execute_that_ends_no_stream_says_what_is_wrong(body: str, text: str, load: Load) -> None:
    engine = load(f"\ndef execute(self, requests):\n    {body}\n")
    with pytest.raises(Exception, match=text):
        answers(engine, 1)
    gc.collect()


@pytest.mark.fault("F78")
def test_what_was_sent_before_a_failure_is_read_first(load: Load) -> None:
    methods = """
        def execute(self, requests):
            requests[0].get_response_sender().send(response(5))
            raise ValueError("in between")
        """
    engine = load(methods)

    async def ask() -> int:
        responses = respond(engine, 1)
        first = int((await anext(responses))["y"][0])
        with pytest.raises(ValueError, match="in between"):
            await anext(responses)
        return first

    assert asyncio.run(asyncio.wait_for(ask(), WAIT_S)) == 5


def test_an_error_response_ends_its_stream_with_its_code(load: Load) -> None:
    methods = """
        def execute(self, requests):
            error = pb_utils.TritonError("none of that", pb_utils.TritonError.NOT_FOUND)
            requests[0].get_response_sender().send(pb_utils.InferenceResponse(error=error), flags=FINAL)
        """
    with pytest.raises(RequestRefused) as raised:
        answers(load(methods), 1)
    assert (raised.value.failure.code, raised.value.failure.text) == ("not_found", "none of that")


@pytest.mark.fault("F78")
def test_a_sender_that_nobody_reads_is_told_and_may_go_on(load: Load) -> None:
    methods = """
        def execute(self, requests):
            sender = requests[0].get_response_sender()
            sender.send(response(1))
            self.go.wait()
            while not (sender.is_cancelled() and requests[0].is_cancelled()):
                pass
            for index in range(1000):
                sender.send(response(index))
            sender.send(flags=FINAL)
            self.seen.set()
        """
    engine = load(methods)

    async def leave() -> bool:
        responses = respond(engine, 1)
        await anext(responses)
        engine._model.go.set()
        await responses.aclose()  # type: ignore[attr-defined] # of a generator
        return bool(engine._model.seen.is_set())

    assert asyncio.run(asyncio.wait_for(leave(), WAIT_S)), "it was left before execute came back"


def test_an_execute_that_waits_for_a_slow_reader_goes_on_when_it_leaves(load: Load) -> None:
    methods = """
        def execute(self, requests):
            sender = requests[0].get_response_sender()
            for index in range(count(requests[0])):
                sender.send(response(index))
            sender.send(flags=FINAL)
            self.seen.set()
        """
    engine = load(methods)

    async def leave() -> None:
        responses = respond(engine, READY_RESPONSES * 2)
        await anext(responses)
        assert not engine._model.seen.is_set(), "nothing bounded what it sent"
        await responses.aclose()  # type: ignore[attr-defined] # of a generator

    asyncio.run(asyncio.wait_for(leave(), WAIT_S))
    assert engine._model.seen.is_set()


def test_asynchronous_executes_wait_side_by_side(load: Load) -> None:
    methods = """
        waiting = 0

        async def execute(self, requests):
            sender = requests[0].get_response_sender()
            type(self).waiting += 1
            while self.waiting < 2:
                await asyncio.sleep(0)
            sender.send(response(self.waiting), flags=FINAL)
        """
    engine = load(methods)

    async def ask() -> list[list[int]]:
        return [*await asyncio.gather(numbers(respond(engine, 1)), numbers(respond(engine, 1)))]

    assert asyncio.run(asyncio.wait_for(ask(), WAIT_S)) == [[2], [2]]


@pytest.mark.parametrize("word", ["def", "async def"])
def test_an_exit_in_execute_is_heard(word: str, load: Load) -> None:
    engine = load(f"\n{word} execute(self, requests):\n    raise SystemExit(3)\n")
    with pytest.raises(SystemExit):
        answers(engine, 1)


OUTLIVES = """
    stop = threading.Event()

    def execute(self, requests):
        (request,) = requests
        if count(request) == 0:
            self.stop.set()
            late = [each for each in threading.enumerate() if each.name == "late"]
            request.get_response_sender().send(response(len(late)), FINAL)
            return
        threading.Thread(target=self.answer, args=(request.get_response_sender(),), name="late", daemon=True).start()

    def answer(self, sender):
        index = 0
        while not self.stop.is_set():
            sender.send(response(index))
            index += 1
"""


@pytest.mark.slow
@pytest.mark.fault("F78")
def test_a_thread_that_sends_on_when_its_request_is_over_harms_no_other_request(tmp_path: Path) -> None:
    with serving(spec_of(tmp_path / "repository", OUTLIVES), tmp_path) as (_, gateway):
        late = gateway.infer(x(1))
        gateway.send(late)
        first = gateway.reply()
        assert isinstance(first, ResponsePart)
        gateway.send(Cancel(late.id))
        while isinstance(end := gateway.reply(), ResponsePart):
            assert end.id == late.id
        assert end.code == "cancelled"
        other = gateway.infer(x(0))
        gateway.send(other)
        part, end = gateway.reply(), gateway.reply()
        assert isinstance(part, ResponsePart)
        assert isinstance(end, InferReply)
        assert (part.id, end.id, end.code) == (other.id, other.id, "")
        assert int(gateway.array(part, "y")[0]) == 1, "the thread is still there, and sent on"
        gateway.send(StreamCredit(other.id, 1))
