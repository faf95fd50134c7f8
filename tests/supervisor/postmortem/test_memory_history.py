from __future__ import annotations

from mmsup.supervisor.postmortem.memory_history import MAX_SAMPLES, MemoryHistory


def test_a_curve_is_told_from_its_end_oldest_first() -> None:
    curve = MemoryHistory()
    for second in range(3):
        curve.add(100.0 + second, second << 20, second)
    assert curve.rows(102.5) == [(2.5, 0, 0), (1.5, 1 << 20, 1), (0.5, 2 << 20, 2)]


def test_a_curve_keeps_the_last_minute() -> None:
    curve = MemoryHistory()
    for second in range(MAX_SAMPLES * 3):
        curve.add(float(second), second, 0)
    rows = curve.rows(MAX_SAMPLES * 3 - 1.0)
    assert len(rows) == MAX_SAMPLES
    assert rows[0] == (MAX_SAMPLES - 1.0, MAX_SAMPLES * 2, 0)
