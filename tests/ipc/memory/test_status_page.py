"""Status page: readers see what the writer wrote."""

from __future__ import annotations

import os
import random
import struct

import pytest

from mmsup.ipc.memory.status_page import (
    RING,
    STATUS_PAGE_BYTES,
    STEPPING_ALL,
    Activity,
    StatusPageReader,
    StatusPageWriter,
    make_status_page,
)


@pytest.fixture
def page() -> int:
    return make_status_page()


def test_a_reader_sees_what_the_writer_wrote(page: int) -> None:
    writer, reader = StatusPageWriter(page), StatusPageReader(page)
    writer.set_activity(Activity.BUSY, 1000)
    writer.heartbeat(2000)
    writer.batch_executed(3)
    writer.batch_executed(1)
    writer.set_device_bytes(77)
    writer.request_refused()
    seen = reader.read()
    assert (seen.activity, seen.since_ns, seen.heartbeat_ns) == (Activity.BUSY, 1000, 2000)
    assert (seen.batches, seen.requests, seen.device_bytes, seen.refused) == (2, 4, 77, 1)
    os.close(page)


def test_the_ring_holds_the_ids_started_last(page: int) -> None:
    writer, reader = StatusPageWriter(page), StatusPageReader(page)
    assert reader.started() == set()
    ids = [2**62 + number for number in range(2 * RING + 3)]
    random.Random(5).shuffle(ids)
    for count, number in enumerate(ids, 1):
        writer.request_started(number)
        if count in (1, RING - 1, RING, RING + 1, len(ids)):
            assert reader.started() == set(ids[max(count - RING, 0) : count])
    writer.set_activity(Activity.IDLE, 1)
    assert reader.read().requests == 0
    os.close(page)


def test_the_current_batch_is_what_was_started_and_is_not_counted_as_executed(page: int) -> None:
    writer, reader = StatusPageWriter(page), StatusPageReader(page)
    assert reader.executing() == set()
    number = 2**62
    for size in (1, 3, RING // 2, 2, RING // 2, RING, 7):
        run = set(range(number, number + size))
        number += size
        for each in run:
            writer.request_started(each)
        assert reader.executing() == run
        writer.batch_executed(size)
        assert reader.executing() == set()
    os.close(page)


@pytest.mark.parametrize("lie", [1, RING + 1, 2**64 - 1])
def test_a_page_with_false_counters_reads_as_no_current_batch(page: int, lie: int) -> None:
    reader = StatusPageReader(page)
    os.pwrite(page, struct.pack("<Q", lie), 6 * 8)
    assert len(reader.executing()) <= 1
    os.pwrite(page, struct.pack("<Q", 2**64 - 1), 4 * 8)
    assert reader.executing() == set()
    os.close(page)


def test_an_unknown_activity_counts_as_busy(page: int) -> None:
    StatusPageWriter(page)
    os.pwrite(page, struct.pack("<Q", 99), 0)
    assert StatusPageReader(page).read().activity is Activity.BUSY
    os.close(page)


def test_a_run_is_busy_with_its_requests_since_its_start(page: int) -> None:
    writer, reader = StatusPageWriter(page), StatusPageReader(page)
    writer.batch_started((7, 8), 50)
    progress = reader.read()
    assert (progress.activity, progress.since_ns, progress.heartbeat_ns) == (Activity.BUSY, 50, 50)
    assert reader.started() == reader.executing() == {7, 8}
    os.close(page)


def test_a_page_cannot_be_shrunk_under_its_readers(page: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page, 0)
    assert os.fstat(page).st_size == STATUS_PAGE_BYTES
    os.close(page)


def test_an_open_stream_has_started_however_many_started_since_and_its_step_is_executed(
    page: int,
) -> None:
    writer, reader = StatusPageWriter(page), StatusPageReader(page)
    for place, number in enumerate((2**62 + 1, 2**62 + 2)):
        writer.set_stream(place, number)
        writer.request_started(number)
        writer.batch_executed(1)
    for number in range(RING + 5):
        writer.request_started(number + 1)
        writer.batch_executed(1)
    assert {2**62 + 1, 2**62 + 2} <= reader.started()
    assert reader.read().open_streams == 2
    assert reader.executing() == set()
    writer.step(2**62 + 2, 5)
    assert reader.executing() == {2**62 + 2}
    assert (reader.read().activity, reader.read().since_ns) == (Activity.BUSY, 5)
    writer.step(STEPPING_ALL, 6)
    assert reader.executing() == {2**62 + 1, 2**62 + 2}
    writer.stepped(7)
    assert (reader.read().activity, reader.read().since_ns) == (Activity.IDLE, 7)
    writer.set_stream(0, 0)
    assert reader.executing() == set()
    assert 2**62 + 1 not in reader.started()
    assert reader.read().open_streams == 1
    os.close(page)
