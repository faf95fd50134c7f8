"""Keys in use stay, others are evicted."""

from __future__ import annotations

from mmsup.ipc.bounded_cache import BoundedCache


def test_a_key_in_use_survives_a_flood_of_new_keys() -> None:
    known: BoundedCache[int, str] = BoundedCache(limit=8)
    known.add(-1, "often")
    for number in range(1000):
        known.add(number, "once")
        assert known.get(-1) == "often"
        assert len(known) <= 8
    assert known.get(0) is None
