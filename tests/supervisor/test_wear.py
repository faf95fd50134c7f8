from __future__ import annotations

import os
import resource

import pytest

from mmsup.supervisor.recycling import files_of
from mmsup.supervisor.wear import Reading, worn


@pytest.mark.parametrize(
    ("reading", "recycle_bytes", "reason"),
    [
        (Reading(memory_bytes=201, first_bytes=100), 200, "rss"),
        (Reading(memory_bytes=200, first_bytes=100), 200, ""),
        (Reading(memory_bytes=900, first_bytes=100), None, ""),
        (Reading(memory_bytes=300, first_bytes=290), 200, ""),  # born above its limit
        (Reading(memory_bytes=320, first_bytes=290), 200, "rss"),
        (Reading(files=3072, files_limit=4096), None, "files"),
        (Reading(files=3071, files_limit=4096), None, ""),
        (Reading(), 200, ""),
    ],
)
def test_a_worker_is_worn_out_by_growth_beyond_its_limit_or_by_descriptors(
    reading: Reading, recycle_bytes: int | None, reason: str
) -> None:
    assert worn(reading, recycle_bytes) == reason


def test_the_descriptors_of_a_process_are_counted() -> None:
    before, limit = files_of(os.getpid())
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    assert files_of(os.getpid())[0] == before + 10
    for each in held:
        os.close(each)
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_a_process_that_is_gone_has_none() -> None:
    assert files_of(2**22 + 1) == (0, 0)
