"""Freezing what lives when a process has started."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from mmsup.ipc.memory import garbage


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.freeze()  # as conftest.py has frozen what was collected
    gc.enable()


class Cycle:
    def __init__(self) -> None:
        self.own = self


def test_what_lives_is_frozen_and_what_is_dead_is_freed_first() -> None:
    lives, dead = Cycle(), Cycle()
    number = id(dead)
    del dead
    garbage.freeze()
    assert gc.get_freeze_count()
    assert gc.isenabled()
    gc.unfreeze()
    left = {id(each) for each in gc.get_objects() if type(each) is Cycle}
    assert id(lives) in left
    assert number not in left


def test_no_collection_starts_by_itself_afterwards() -> None:
    garbage.freeze_and_disable()
    assert gc.get_freeze_count()
    assert not gc.isenabled()
