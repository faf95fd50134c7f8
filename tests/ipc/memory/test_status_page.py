"""What a process says of its progress is read as it was said."""

from __future__ import annotations

import os
import random
import struct

import pytest

from mmsup.ipc.memory.status_page import PAGE_BYTES, RING, Activity, PageReader, PageWriter, make_page


@pytest.fixture
def page() -> int:
    return make_page()


def test_a_reader_sees_what_the_writer_said(page: int) -> None:
    writer, reader = PageWriter(page), PageReader(page)
    writer.enter(Activity.BUSY, 1000)
    writer.turn(2000)
    writer.executed(3)
    writer.executed(1)
    writer.device_bytes(77)
    writer.refused()
    seen = reader.read()
    assert (seen.activity, seen.since_ns, seen.beat_ns) == (Activity.BUSY, 1000, 2000)
    assert (seen.batches, seen.requests, seen.device_bytes, seen.refused) == (2, 4, 77, 1)
    os.close(page)


def test_the_ids_that_began_last_are_kept_in_whatever_order_they_began(page: int) -> None:
    writer, reader = PageWriter(page), PageReader(page)
    assert reader.begun() == set()
    ids = [2**62 + number for number in range(2 * RING + 3)]
    random.Random(5).shuffle(ids)
    for count, number in enumerate(ids, 1):
        writer.begin(number)
        if count in (1, RING - 1, RING, RING + 1, len(ids)):
            assert reader.begun() == set(ids[max(count - RING, 0) : count])
    writer.enter(Activity.IDLE, 1)
    assert reader.read().requests == 0
    os.close(page)


def test_the_run_that_is_going_on_is_those_that_began_and_are_not_counted_as_executed(page: int) -> None:
    writer, reader = PageWriter(page), PageReader(page)
    assert reader.running() == set()
    number = 2**62
    for size in (1, 3, RING // 2, 2, RING // 2, RING, 7):
        run = set(range(number, number + size))
        number += size
        for each in run:
            writer.begin(each)
        assert reader.running() == run
        writer.executed(size)
        assert reader.running() == set()
    os.close(page)


@pytest.mark.parametrize("lie", [1, RING + 1, 2**64 - 1])
def test_a_page_that_lies_about_its_run_costs_its_reader_nothing(page: int, lie: int) -> None:
    reader = PageReader(page)
    os.pwrite(page, struct.pack("<Q", lie), 6 * 8)
    assert len(reader.running()) <= 1
    os.pwrite(page, struct.pack("<Q", 2**64 - 1), 4 * 8)
    assert reader.running() == set()
    os.close(page)


def test_an_activity_that_nobody_knows_counts_as_busy(page: int) -> None:
    PageWriter(page)
    os.pwrite(page, struct.pack("<Q", 99), 0)
    assert PageReader(page).read().activity is Activity.BUSY
    os.close(page)


def test_a_page_cannot_be_shrunk_under_its_readers(page: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(page, 0)
    assert os.fstat(page).st_size == PAGE_BYTES
    os.close(page)
