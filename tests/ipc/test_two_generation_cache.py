"""What is asked for stays; what is not, goes."""

from __future__ import annotations

from mmsup.ipc.two_generation_cache import BoundedCache


def test_halves_keep_what_is_asked_for_through_any_flood() -> None:
    known: BoundedCache[int, str] = BoundedCache(limit=8)
    known.add(-1, "often")
    for number in range(1000):
        known.add(number, "once")
        assert known.get(-1) == "often"
        assert len(known) <= 8
    assert known.get(0) is None
