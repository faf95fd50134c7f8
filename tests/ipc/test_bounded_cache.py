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


def test_values_are_kept_up_to_a_number_of_bytes() -> None:
    known: BoundedCache[int, bytes] = BoundedCache(100, 1000, lambda _, value: len(value))
    for number in range(50):
        known.add(number, bytes(100))
        kept = sum(len(value) for each in range(50) if (value := known.get(each)) is not None)
        assert kept <= 1000
    known.add(99, bytes(501))
    assert known.get(99) is None
    assert known.get(49) is not None
