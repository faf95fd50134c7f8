"""Which sequences run together, in which rows, and how long a batch waits."""

from __future__ import annotations

import pytest

from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.specs import SequenceBatching
from mmsup.worker.batching.request_signature import BatchKey, RequestSignature
from mmsup.worker.sequences.live_sequence import SequencedRequest
from mmsup.worker.sequences.sequence_batch import SequenceRule, next_sequences, rule_of
from mmsup.worker.sequences.sequence_signature import SequenceStep
from mmsup.worker.sequences.sequence_table import NEVER_NS, SequenceTable

ALIKE = RequestSignature(InferSignature((), (), {}), BatchKey())
OTHER = RequestSignature(InferSignature((), (), {}), BatchKey())
UNLIKE_ALL = RequestSignature(InferSignature((), (), {}), None)
OLDEST = SequenceRule(4, is_direct=False, delay_ns=100)
DIRECT = SequenceRule(4, is_direct=True)


def filled(*arrivals: tuple[int, int, RequestSignature], slots: int = 8) -> SequenceTable[str]:
    """A table with these sequences: id, time of arrival, signature."""
    table: SequenceTable[str] = SequenceTable(slots, 1000)
    for number, at_ns, signature in arrivals:
        message = Infer(number, b"", NEVER_NS - 1, None, ())
        step = SequenceStep(number, is_start=True)
        assert table.submit(SequencedRequest("link", message, signature, step, at_ns)) is None
    return table


def ids(table: SequenceTable[str], now_ns: int, rule: SequenceRule) -> tuple[list[int | str], int]:
    chosen, until_ns = next_sequences(table, now_ns, rule)
    return [each.id for each in chosen], until_ns


def test_nothing_runs_where_nothing_waits() -> None:
    assert ids(filled(), 0, DIRECT) == ([], NEVER_NS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (DIRECT, [1, 2, 3, 4]),
        (SequenceRule(4, is_direct=False), [4, 2, 3, 1]),
        (SequenceRule(2, is_direct=False), [4, 2]),
        (SequenceRule(1, is_direct=False), [4]),
    ],
)
def test_direct_goes_by_slot_and_oldest_by_arrival(rule: SequenceRule, expected: list[int]) -> None:
    table = filled((1, 40, ALIKE), (2, 20, ALIKE), (3, 30, ALIKE), (4, 10, ALIKE))
    assert ids(table, 50, rule) == (expected, 0)


def test_only_requests_that_are_alike_run_together_the_oldest_decides() -> None:
    table = filled((1, 20, ALIKE), (2, 10, OTHER), (3, 30, OTHER))
    assert ids(table, 50, DIRECT) == ([2, 3], 0)
    assert ids(filled((1, 5, UNLIKE_ALL), (2, 10, ALIKE)), 50, DIRECT) == ([1], 0)


def test_a_batch_waits_for_the_delay_unless_every_sequence_is_there() -> None:
    table = filled((1, 10, ALIKE), (2, 20, ALIKE), (3, 30, ALIKE))
    assert ids(table, 40, OLDEST) == ([1, 2, 3], 0), "no other sequence has a slot"
    waiting = table.ready[3]
    table.finish(waiting, table.take(waiting), 35, has_failed=False)
    assert ids(table, 40, OLDEST) == ([], 110)
    assert ids(table, 110, OLDEST) == ([1, 2], 0)


def test_a_preferred_size_or_enough_slots_start_a_batch_before_the_delay() -> None:
    table = filled(*((number, number, ALIKE) for number in (1, 2, 3, 4)))
    idle = table.ready[4]
    table.finish(idle, table.take(idle), 5, has_failed=False)
    assert ids(table, 6, SequenceRule(4, is_direct=False, delay_ns=100, preferred=(2,))) == ([1, 2], 0)
    assert ids(table, 6, SequenceRule(4, is_direct=True, delay_ns=100, enough=3)) == ([1, 2, 3], 0)
    assert ids(table, 6, SequenceRule(4, is_direct=True, delay_ns=100, enough=4)) == ([], 101)


@pytest.mark.parametrize(
    ("batching", "rows", "expected"),
    [
        (SequenceBatching(), 0, SequenceRule(1, is_direct=True, enough=1)),
        (
            SequenceBatching(utilization=0.5, delay_s=0.001),
            8,
            SequenceRule(8, is_direct=True, delay_ns=10**6, enough=4),
        ),
        (SequenceBatching("oldest", preferred=(2, 4)), 8, SequenceRule(8, is_direct=False, preferred=(2, 4))),
    ],
)
def test_the_rule_follows_from_the_configuration(batching: SequenceBatching, rows: int, expected: SequenceRule) -> None:
    assert rule_of(batching, rows, max(rows, 1)) == expected
