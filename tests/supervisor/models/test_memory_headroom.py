from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.supervisor.linux.cgroup import Cgroup
from mmsup.supervisor.models.memory_headroom import RESERVED_BYTES, MemoryHeadroom, fits


class Full(MemoryHeadroom):
    """Room for `free` bytes and what is spared."""

    def __init__(self, free: int) -> None:
        self._free = free

    def available_bytes(self) -> int:
        return self._free + RESERVED_BYTES


def worker(first_bytes: int, *, lives: bool = True) -> Any:  # as much of an Instance as is asked
    life = SimpleNamespace(pid=os.getpid()) if lives else None
    return SimpleNamespace(process=life, worker=SimpleNamespace(initial_bytes=first_bytes, group=Cgroup(())))


@pytest.mark.parametrize(
    ("needs", "available", "expected"),
    [(0, RESERVED_BYTES, True), (1, RESERVED_BYTES, False), (1 << 30, 1 << 31, True), (1 << 30, 1 << 30, False)],
)
def test_two_fit_if_something_is_left_beside_both(needs: int, available: int, expected: bool) -> None:
    assert fits(needs, available) is expected


def test_a_fresh_one_needs_what_this_one_held_at_first_and_not_what_it_has_grown_to() -> None:
    assert MemoryHeadroom().required_bytes(worker(1)) == 1
    assert (MemoryHeadroom().required_bytes(worker(0)) or 0) > 1 << 20  # all that this process holds


def test_what_others_were_promised_is_not_there_any_more() -> None:
    assert Full(10).has_room_for(worker(6), 4)
    assert not Full(10).has_room_for(worker(6), 5)


def test_there_is_room_where_nobody_knows_the_need() -> None:
    assert Full(0).has_room_for(worker(1, lives=False))
