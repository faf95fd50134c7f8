"""Chooses which sequences run their next requests together, or until when to wait for more. Pure.

A batch has one request of each of its sequences, at most, and of those that are alike. With `direct` each sequence has
the row of its slot; with `oldest` the requests that came first go first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from mmsup.ipc.specs import SequenceBatching
from mmsup.worker.sequences.live_sequence import L, Sequence
from mmsup.worker.sequences.sequence_table import SequenceTable


@dataclass(frozen=True, slots=True)
class SequenceRule:
    max_rows: int
    """1: each request runs by itself."""
    is_direct: bool
    delay_ns: int = 0
    enough: int = 0
    """So many requests start a batch before the delay is over; 0: only as many as there are sequences do."""
    preferred: tuple[int, ...] = ()


def rule_of(batching: SequenceBatching, max_batch_size: int, slots: int) -> SequenceRule:
    is_direct = batching.strategy == "direct"
    enough = max(math.ceil(batching.utilization * slots), 1) if is_direct else 0
    return SequenceRule(max(max_batch_size, 1), is_direct, round(batching.delay_s * 1e9), enough, batching.preferred)


def next_sequences(table: SequenceTable[L], now_ns: int, rule: SequenceRule) -> tuple[Rows[Sequence[L]], int]:
    """Those that run now, in the order of their rows; else none, and when to ask again, unless a request comes."""
    if not table.ready:
        return (), table.next_event_ns()
    ready = sorted(table.ready.values(), key=_arrived_ns)
    key = ready[0].pending[0].signature.batch_key
    if rule.max_rows == 1 or key is None:
        return ready[:1], 0
    alike = [each for each in ready if each.pending[0].signature.batch_key is key][: rule.max_rows]
    until_ns = _arrived_ns(ready[0]) + rule.delay_ns
    if rule.delay_ns and now_ns < until_ns:
        size = _size_before_delay(len(alike), rule, table.slots.used)
        if not size:
            return (), min(until_ns, table.next_event_ns())
        alike = alike[:size]
    return sorted(alike, key=_slot) if rule.is_direct else alike, 0


def _size_before_delay(count: int, rule: SequenceRule, in_slots: int) -> int:
    """How many of so many requests run before the delay is over; 0: it is waited for."""
    if count >= min(rule.max_rows, in_slots) or (rule.enough and count >= rule.enough):
        return count
    return max([each for each in rule.preferred if each <= count], default=0)


def _arrived_ns(sequence: Sequence[L]) -> int:
    return sequence.pending[0].arrived_ns


def _slot(sequence: Sequence[L]) -> int:
    return sequence.slot
