"""The parts of a stream that wait for their reader: in order, within the window, each credited."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.gateway.dispatch.streams.part_queue import OWED_PARTS, PartQueue
from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.ipc.messages.data import ResponsePart
from mmsup.ipc.messages.stream_window import WINDOW_PARTS


def part(sequence: int, size: int = 4, *, needed: int = 0) -> ResponsePart:
    locations = () if needed else (bytes(size),)
    return ResponsePart(
        1, signature=b"" if needed else b"s", locations=locations, needed_bytes=needed, sequence=sequence
    )


def received(queue: PartQueue[str], sequence: int) -> None:
    made = part(sequence)
    assert queue.count(made) == ""
    queue.put(InferenceResult([], made))


def test_parts_are_read_in_order_and_the_end_comes_after_them() -> None:
    async def read() -> list[object]:
        queue: PartQueue[str] = PartQueue(lambda _: None)
        reader = asyncio.create_task(queue.next())
        await asyncio.sleep(0)
        received(queue, 0)
        received(queue, 1)
        queue.on_end("over")
        found: list[object] = [await reader, await queue.next(), await queue.next(), await queue.next()]
        return [each.reply.sequence if isinstance(each, InferenceResult) else each for each in found]  # type: ignore[attr-defined] # parts

    assert asyncio.run(read()) == [0, 1, "over", "over"]


def test_a_worker_that_counts_wrongly_or_sends_beyond_the_window_is_found_out() -> None:
    queue: PartQueue[str] = PartQueue(lambda _: None)
    assert "comes as number 0" in queue.count(part(1))
    for sequence in range(WINDOW_PARTS):
        received(queue, sequence)
    assert "comes as number 16" in queue.count(part(3))
    assert "than its reader has taken" in queue.count(part(WINDOW_PARTS))


def test_credits_are_sent_for_some_parts_together_and_at_once_for_one_in_a_buffer() -> None:
    told: list[int] = []
    queue: PartQueue[str] = PartQueue(told.append)
    for sequence in range(2 * OWED_PARTS - 1):
        received(queue, sequence)
        queue.take()
    assert told == [OWED_PARTS]
    one = ResponsePart(1, signature=b"s", locations=((0, 0, 9000),), sequence=2 * OWED_PARTS - 1)
    assert queue.count(one) == ""
    queue.take()
    assert told == [OWED_PARTS, 2 * OWED_PARTS]


@pytest.mark.parametrize("taken", range(1, WINDOW_PARTS))
def test_a_worker_that_waits_for_credit_gets_it_from_a_reader_that_waits(taken: int) -> None:
    told: list[int] = [0]
    queue: PartQueue[str] = PartQueue(told.append)
    for sequence in range(taken):
        received(queue, sequence)
        queue.take()
    assert taken - told[-1] < WINDOW_PARTS, "both would wait for ever"


def test_a_part_that_waits_for_a_buffer_is_counted_when_it_comes() -> None:
    queue: PartQueue[str] = PartQueue(lambda _: None)
    assert queue.count(part(0, needed=100)) == ""
    assert queue.count(part(0)) == ""
    assert "comes as number 1" in queue.count(part(0))
