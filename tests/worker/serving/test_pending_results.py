"""Results that wait for an output buffer."""

from __future__ import annotations

import pytest

from mmsup.worker.serving import pending_results
from mmsup.worker.serving.pending_results import PendingResult, PendingResults, RunTimes
from request_double import link, queued

TIMES = RunTimes(0, 0, 0, 0, 1, 1)


def result(number: int, size: int = 10, *, identity: bytes = b"g0.1", deadline_ns: int = 100) -> PendingResult:
    request = queued(number=number, deadline_ns=deadline_ns, identity=identity)
    return PendingResult(request, (("y", (size,), memoryview(bytearray(size))),), TIMES)


def test_a_pending_result_is_a_copy() -> None:
    pending = PendingResults()
    one = result(1)
    assert pending.add(one)
    one.outputs[0][2][0] = 9  # type: ignore[index] # a view
    taken = pending.pop((link(b"g0.1"), 1))
    assert taken is not None
    assert taken.outputs[0][2] == bytes(10)


def test_a_result_is_taken_once() -> None:
    pending = PendingResults()
    pending.add(result(1))
    assert pending.pop((link(b"g0.1"), 1)) is not None
    assert pending.pop((link(b"g0.1"), 1)) is None
    assert len(pending.results) == 0


def test_count_and_bytes_are_bounded_but_one_result_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_results, "SIZE_LIMIT_BYTES", 100)
    pending = PendingResults()
    assert pending.add(result(1, 500))
    assert not pending.add(result(2, 1))
    pending.pop((link(b"g0.1"), 1))
    assert pending.add(result(3, 60))
    assert pending.add(result(4, 40))
    assert not pending.add(result(5, 1))
    monkeypatch.setattr(pending_results, "COUNT_LIMIT", 2)
    pending.pop((link(b"g0.1"), 3))
    assert pending.add(result(6, 1))
    assert not pending.add(result(7, 1))


def test_results_are_removed_by_their_deadline_and_with_their_link() -> None:
    pending = PendingResults()
    for number, deadline_ns, identity in ((1, 50, b"g0.1"), (2, 200, b"g0.1"), (3, 200, b"g1.1")):
        pending.add(result(number, deadline_ns=deadline_ns, identity=identity))
    assert [request.message.id for request in pending.expire(100)] == [1]
    pending.drop_link(link(b"g0.1"))
    assert len(pending.results) == 1
    assert pending.pop((link(b"g1.1"), 3)) is not None
