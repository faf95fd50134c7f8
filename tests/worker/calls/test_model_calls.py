"""Calls of other models, over a link that the test plays."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from mmsup.ipc.messages.calls import CallInputs, CallModel, CallReply, EndCall, GrantCall
from mmsup.ipc.messages.data import ReplySignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.numpy_arrays import as_array
from mmsup.ipc.transport.codec import pack_signature, unpack_frame, unpack_infer_signature
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.worker.calls import model_calls
from mmsup.worker.calls.model_calls import OPEN_LIMIT, ModelCalls
from mmsup.worker.calls.transport import CallingRun, CallLink
from mmsup.worker.execution.call_error import CallError

Record = CallModel | CallInputs | EndCall
Reply = GrantCall | CallReply
X = np.arange(4, dtype=np.float32)


class Gateway:
    """A link, and whoever answers at its other end: `answer` says what comes back for a record."""

    def __init__(self, answer: Callable[[Record], Sequence[Reply]]) -> None:
        self.model, self.poll_s = "caller", 0.0
        self.sent: list[Any] = []
        self.memory = bytearray(1 << 20)
        self.runs = True
        self.is_closed = False
        self.refusals = 0
        """How often a frame is not accepted yet."""
        self.waits: list[str] = []
        self._answer = answer
        self._incoming: list[Reply] = []
        self._read, self._write = os.pipe()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def send(self, frame: bytes) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        for record in unpack_frame(frame):
            self.sent.append(record)
            self.deliver(*self._answer(record))
        return True

    def deliver(self, *replies: Reply) -> None:
        if replies:
            self._incoming += replies
            os.write(self._write, b".")

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        del segment, writable
        return memoryview(self.memory)[offset : offset + size]

    def run(self) -> CallingRun | None:
        return CallingRun(self, (7,), is_shared=False, priority=2) if self.runs else None

    def receive(self, link: CallLink) -> Sequence[Reply]:
        assert link is self
        if self.is_closed:
            raise ChannelClosed
        found, self._incoming = self._incoming, []
        if found:
            os.read(self._read, 100)
        return found

    def wait(self, link: CallLink, timeout_ms: int) -> None:
        del link, timeout_ms
        self.waits.append("wait")

    def begin_wait(self) -> None:
        self.waits.append("begin")

    def beat(self) -> None:
        pass

    def end_wait(self) -> None:
        self.waits.append("end")


def result(number: int, array: Any = X, location: Any = None) -> CallReply:  # an array; a location
    signature = pack_signature(ReplySignature((TensorSpec("y", "FP32", array.shape),)))
    return CallReply(number, "", "", retryable=False, signature=signature, locations=(location or array.tobytes(),))


def double(record: Record) -> list[Reply]:
    if not isinstance(record, CallModel):
        return []
    (location,) = record.locations
    assert isinstance(location, bytes)
    return [result(record.id, np.frombuffer(location, np.float32) * 2)]


@pytest.fixture
def connect() -> Iterator[Callable[[Callable[[Record], Sequence[Reply]]], tuple[ModelCalls, Gateway]]]:
    made: list[Gateway] = []

    def connected(answer: Callable[[Record], Sequence[Reply]]) -> tuple[ModelCalls, Gateway]:
        gateway, calls = Gateway(answer), ModelCalls()
        made.append(gateway)
        calls.connect(gateway)
        return calls, gateway

    yield connected
    for each in made:
        each.close()


Connect = Callable[[Callable[[Record], Sequence[Reply]]], tuple[ModelCalls, Gateway]]


def test_a_call_names_its_run_and_returns_arrays_of_its_own(connect: Connect) -> None:
    calls, gateway = connect(double)
    made = calls.infer("other", {"x": X}, version="3", parameters={"k": 1}, outputs=["y"])
    assert made["y"].tolist() == [0.0, 2.0, 4.0, 6.0]
    made["y"][0] = 9.0  # it may be written to
    (call,) = gateway.sent
    signature = unpack_infer_signature(call.signature)
    assert (call.model, call.version, call.parents, call.is_shared) == ("other", "3", (7,), False)
    assert (signature.outputs, signature.parameters, signature.priority) == (("y",), {"k": 1}, 2)
    assert (gateway.waits[0], gateway.waits[-1]) == ("begin", "end")


def test_large_inputs_wait_for_memory_and_large_outputs_are_given_back(connect: Connect) -> None:
    large = np.arange(5000, dtype=np.float32)

    def answer(record: Record) -> list[Reply]:
        if isinstance(record, CallModel):
            assert record.locations == ()
            return [GrantCall(record.id, 0, 64, record.needed_bytes)]
        if isinstance(record, CallInputs):
            ((_, offset, size),) = record.locations
            given = as_array(memoryview(gateway.memory)[offset : offset + size], "FP32", (5000,))
            gateway.memory[1 << 16 : (1 << 16) + size] = (given + 1).tobytes()
            return [result(record.id, large, (1, 1 << 16, size))]
        return []

    calls, gateway = connect(answer)
    made = calls.infer("other", {"x": large})["y"]
    assert [type(each) for each in gateway.sent] == [CallModel, CallInputs, EndCall]
    gateway.memory[1 << 16] ^= 1  # given back: whoever has it now may write
    assert np.array_equal(made, large + 1)


def test_a_call_without_a_result_raises_what_the_model_can_read(connect: Connect) -> None:
    calls, gateway = connect(lambda each: [CallReply(each.id, "worker_crashed", "it was killed", retryable=True)])
    with pytest.raises(CallError, match="model 'caller' called model 'other': it was killed") as caught:
        calls.infer("other", {"x": X})
    error = caught.value
    assert (error.code, error.model, error.retryable, error.own_code) == (
        *("worker_crashed", "other", True),
        "inference_failed",
    )
    assert gateway.waits[-1] == "end"


def test_strings_and_lists_are_inputs_and_other_things_are_refused(connect: Connect) -> None:
    calls, gateway = connect(lambda each: [result(each.id)])
    calls.infer("other", {"a": ["x", "y"], "b": [[1, 2]]})
    inputs = unpack_infer_signature(gateway.sent[0].signature).inputs
    assert [(each.name, each.datatype, each.shape) for each in inputs] == [("a", "BYTES", (2,)), ("b", "INT64", (1, 2))]
    for bad, words in (
        ({"x": np.zeros(1, np.complex64)}, "complex64"),
        ({"x": X, 3: X}, "no datatype"),
        ([X], "dict"),
    ):
        with pytest.raises(CallError, match=words):
            calls.infer("other", bad)  # type: ignore[arg-type] # the user's code is not checked
    with pytest.raises(CallError, match="parameter 'p'"):
        calls.infer("other", {"x": X}, parameters={"p": [1]})


def test_calls_are_made_in_a_run_and_in_its_thread_only(connect: Connect) -> None:
    calls, gateway = connect(double)
    raised: list[CallError] = []

    def call() -> None:
        try:
            calls.infer("other", {"x": X})
        except CallError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    gateway.runs = False
    call()
    assert [each.code for each in raised] == ["unavailable"] * 2
    with pytest.raises(CallError, match="cannot be called here"):
        ModelCalls().infer("other", {"x": X})


def test_a_gateway_that_ends_ends_its_calls(connect: Connect) -> None:
    calls, gateway = connect(lambda _: [])
    gateway.is_closed = True
    with pytest.raises(CallError, match="has ended") as caught:
        calls.infer("other", {"x": X})
    assert caught.value.code == "unavailable"


def test_a_frame_that_finds_no_room_is_sent_later(connect: Connect) -> None:
    calls, gateway = connect(double)
    gateway.refusals = 3
    assert calls.infer("other", {"x": X})["y"].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_asynchronous_calls_run_together_and_end_in_any_order(connect: Connect) -> None:
    open_calls: list[CallModel] = []

    def answer(record: Record) -> list[Reply]:
        if isinstance(record, CallModel):
            open_calls.append(record)
        if len(open_calls) < 3 or not isinstance(record, CallModel):
            return []
        return [reply for each in reversed(open_calls) for reply in double(each)]

    calls, gateway = connect(answer)

    async def together() -> list[float]:
        made = await asyncio.gather(*[calls.infer_async("other", {"x": X[:1] + number}) for number in range(3)])
        return [float(each["y"][0]) for each in made]

    assert asyncio.run(together()) == [0.0, 2.0, 4.0]
    assert (gateway.waits.count("begin"), gateway.waits.count("end")) == (3, 3)


def test_an_asynchronous_call_that_is_cancelled_ends_at_the_gateway(connect: Connect) -> None:
    calls, gateway = connect(lambda _: [])

    async def cancel() -> None:
        task = asyncio.create_task(calls.infer_async("other", {"x": X}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert [type(each) for each in gateway.sent] == [CallModel, EndCall]
    gateway.deliver(result(gateway.sent[0].id))  # too late, and nobody's
    assert gateway.waits == ["begin", "end"]


def test_a_run_has_so_many_calls_at_once(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, _ = connect(lambda _: [])
    assert OPEN_LIMIT == 64
    monkeypatch.setattr(model_calls, "OPEN_LIMIT", 2)

    async def three() -> list[Any]:
        tasks = [asyncio.create_task(calls.infer_async("other", {"x": X})) for _ in range(3)]
        done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return [each.exception() for each in done]

    (error,) = asyncio.run(three())
    assert error.code == "queue_full"
