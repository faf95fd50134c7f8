from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.supervisor.linux.cgroup import Group
from mmsup.supervisor.models.memory_headroom import SPARE_BYTES, Room, has_room


class Full(Room):
    """Room for `free` bytes and what is spared."""

    def __init__(self, free: int) -> None:
        self._free = free

    def available_bytes(self) -> int:
        return self._free + SPARE_BYTES


def worker(first_bytes: int, *, lives: bool = True) -> Any:  # as much of an Instance as is asked
    life = SimpleNamespace(pid=os.getpid()) if lives else None
    return SimpleNamespace(life=life, tenure=SimpleNamespace(first_bytes=first_bytes, group=Group(())))


@pytest.mark.parametrize(
    ("needs", "available", "fits"),
    [(0, SPARE_BYTES, True), (1, SPARE_BYTES, False), (1 << 30, 1 << 31, True), (1 << 30, 1 << 30, False)],
)
def test_two_fit_if_something_is_left_beside_both(needs: int, available: int, fits: bool) -> None:
    assert has_room(needs, available) is fits


def test_a_fresh_one_needs_what_this_one_held_at_first_and_not_what_it_has_grown_to() -> None:
    assert Room().needs_bytes(worker(1)) == 1
    assert (Room().needs_bytes(worker(0)) or 0) > 1 << 20  # all that this process holds


def test_what_others_were_promised_is_not_there_any_more() -> None:
    assert Full(10).is_for(worker(6), 4)
    assert not Full(10).is_for(worker(6), 5)


def test_there_is_room_where_nobody_knows_the_need() -> None:
    assert Full(0).is_for(worker(1, lives=False))
