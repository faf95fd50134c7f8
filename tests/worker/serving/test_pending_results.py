"""Results that wait for room."""

from __future__ import annotations

import pytest

from mmsup.worker.serving import pending_results
from mmsup.worker.serving.pending_results import PendingResult, PendingResults, RunTimes
from work_double import link, work

TIMES = RunTimes(0, 0, 0, 0, 1)


def result(number: int, size: int = 10, *, identity: bytes = b"g0.1", deadline_ns: int = 100) -> PendingResult:
    waits = work(number=number, deadline_ns=deadline_ns, identity=identity)
    return PendingResult(waits, (("y", (size,), memoryview(bytearray(size))),), TIMES)


def test_a_kept_result_is_a_copy_that_nobody_can_change() -> None:
    kept = PendingResults()
    one = result(1)
    assert kept.add(one)
    one.outputs[0][2][0] = 9  # type: ignore[index] # a view
    taken = kept.pop((link(b"g0.1"), 1))
    assert taken is not None
    assert taken.outputs[0][2] == bytes(10)


def test_a_result_is_taken_once() -> None:
    kept = PendingResults()
    kept.add(result(1))
    assert kept.pop((link(b"g0.1"), 1)) is not None
    assert kept.pop((link(b"g0.1"), 1)) is None
    assert len(kept) == 0


def test_count_and_bytes_are_bounded_but_one_result_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_results, "SIZE_LIMIT_BYTES", 100)
    kept = PendingResults()
    assert kept.add(result(1, 500))
    assert not kept.add(result(2, 1))
    kept.pop((link(b"g0.1"), 1))
    assert kept.add(result(3, 60))
    assert kept.add(result(4, 40))
    assert not kept.add(result(5, 1))
    monkeypatch.setattr(pending_results, "COUNT_LIMIT", 2)
    kept.pop((link(b"g0.1"), 3))
    assert kept.add(result(6, 1))
    assert not kept.add(result(7, 1))


def test_results_go_with_their_deadline_and_with_their_gateway() -> None:
    kept = PendingResults()
    for number, deadline_ns, identity in ((1, 50, b"g0.1"), (2, 200, b"g0.1"), (3, 200, b"g1.1")):
        kept.add(result(number, deadline_ns=deadline_ns, identity=identity))
    assert [work.request.id for work in kept.expire(100)] == [1]
    kept.drop_link(link(b"g0.1"))
    assert len(kept) == 1
    assert kept.pop((link(b"g1.1"), 3)) is not None
