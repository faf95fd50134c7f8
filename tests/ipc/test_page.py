"""What a process says of its progress is read as it was said."""

from __future__ import annotations

import os
import struct

import pytest

from mmsup.ipc.page import GATEWAY_LIMIT, PAGE_BYTES, Activity, PageReader, PageWriter, make_page


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
    seen = reader.read()
    assert (seen.activity, seen.since_ns, seen.beat_ns) == (Activity.BUSY, 1000, 2000)
    assert (seen.batches, seen.requests, seen.device_bytes) == (2, 4, 77)
    os.close(page)


def test_begun_is_kept_for_each_gateway(page: int) -> None:
    writer, reader = PageWriter(page), PageReader(page)
    writer.begin(0, 2**62)
    writer.begin(GATEWAY_LIMIT - 1, 5)
    assert [reader.begun(each) for each in (0, 1, GATEWAY_LIMIT - 1)] == [2**62, 0, 5]
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
