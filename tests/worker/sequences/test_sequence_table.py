"""Which sequences are live, which have a slot, and that no request ever meets the state of another run of its id."""

from __future__ import annotations

import itertools
import random

import pytest

from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.worker.batching.request_signature import BatchKey, RequestSignature
from mmsup.worker.sequences.live_sequence import NO_SLOT, SequencedRequest, SequenceMemory
from mmsup.worker.sequences.sequence_signature import SequenceStep
from mmsup.worker.sequences.sequence_table import NEVER_NS, Refusal, SequenceTable

S = 1_000_000_000
IDLE_NS = 10 * S
LINKS = ("a", "b")
Request = SequencedRequest[str]
_numbers = itertools.count(1)
SIGNATURE = RequestSignature(InferSignature((), (), {}), BatchKey())


def request(
    number: int | str, flags: str = "", *, link: str = LINKS[0], at_ns: int = 0, deadline_ns: int = NEVER_NS - 1
) -> Request:
    """`flags`: s for START, e for END, n for a START that does not wait for a slot."""
    step = SequenceStep(number, "s" in flags or "n" in flags, "e" in flags, "n" not in flags)
    return SequencedRequest(link, Infer(next(_numbers), b"", deadline_ns, None, ()), SIGNATURE, step, at_ns)


def table(slots: int = 1) -> SequenceTable[str]:
    return SequenceTable(slots, IDLE_NS)


def run(of: SequenceTable[str], number: int | str, now_ns: int = 0, *, fails: bool = False) -> list[Request]:
    """Run the next request of a sequence; the requests that are lost by that."""
    sequence = of.ready[number]
    return of.finish(sequence, of.take(sequence), now_ns, has_failed=fails)


def ready(of: SequenceTable[str]) -> list[int | str]:
    return sorted(of.ready, key=str)


@pytest.mark.parametrize("flags", ["", "e"])
def test_a_first_request_without_start_is_refused_and_changes_nothing(flags: str) -> None:
    found = table()
    assert found.submit(request(5, flags)) is Refusal.UNKNOWN
    assert (found.size, len(found.live)) == (0, 0)


def test_the_string_1_and_the_number_1_are_two_sequences() -> None:
    found = table(2)
    assert found.submit(request(1, "s")) is None
    assert found.submit(request("1")) is Refusal.UNKNOWN
    assert found.submit(request("1", "s")) is None
    assert ready(found) == [1, "1"]


def test_a_sequence_has_its_slot_until_its_end_has_run_and_others_wait_in_order() -> None:
    found = table()
    for number in (1, 2, 3):
        assert found.submit(request(number, "s")) is None
    assert ready(found) == [1]
    run(found, 1)
    assert found.submit(request(1, "e")) is None
    assert ready(found) == [1], "one that has begun keeps its slot"
    run(found, 1)
    assert ready(found) == [2]
    assert list(found.live) == [2, 3]


def test_a_request_that_does_not_wait_is_told_that_no_slot_is_free() -> None:
    found = table()
    assert found.submit(request(1, "n")) is None
    assert found.submit(request(2, "n")) is Refusal.FULL
    assert found.submit(request(1, "n")) is None, "it has its slot already"


def test_a_request_behind_an_end_is_refused_unless_it_starts_anew() -> None:
    found = table()
    assert found.submit(request(1, "s")) is None
    assert found.submit(request(1, "e")) is None
    assert found.submit(request(1)) is Refusal.UNKNOWN
    assert found.submit(request(1, "s")) is None
    assert found.submit(request(2, "s")) is None
    run(found, 1)
    run(found, 1)
    assert ready(found) == [2], "it begins anew behind those that wait"


def test_a_sequence_of_one_request_is_over_when_that_has_run() -> None:
    found = table()
    assert found.submit(request(1, "se")) is None
    run(found, 1)
    assert not found.live
    assert found.submit(request(1)) is Refusal.UNKNOWN


def test_an_idle_sequence_is_over_and_its_slot_goes_to_who_waits() -> None:
    found = table()
    assert found.submit(request(1, "s")) is None
    run(found, 1, now_ns=S)
    assert found.submit(request(2, "s")) is None
    assert found.next_event_ns() == S + IDLE_NS
    assert found.end_idle(S + IDLE_NS - 1) == 0
    assert found.end_idle(S + IDLE_NS) == 1
    assert ready(found) == [2]
    assert found.was_idle(1)
    assert found.submit(request(1)) is Refusal.UNKNOWN


def test_a_sequence_with_a_request_that_waits_is_not_idle() -> None:
    found = table()
    assert found.submit(request(1, "s")) is None
    run(found, 1, now_ns=0)
    assert found.submit(request(1)) is None
    assert found.end_idle(100 * IDLE_NS) == 0


@pytest.mark.parametrize("way", ["cancel", "late", "link", "failure"])
def test_what_follows_a_start_that_never_succeeded_is_refused(way: str) -> None:
    found = table()
    start, follower = request(1, "s", deadline_ns=5 * S), request(1, link=LINKS[1])
    assert found.submit(start) is None
    assert found.submit(follower) is None
    if way == "cancel":
        assert found.cancel("a", start.message.id) == [start, follower]
    elif way == "late":
        assert found.pop_late(4 * S) == []
        assert found.pop_late(5 * S) == [(start, True), (follower, False)]
    elif way == "link":
        assert found.drop_link(LINKS[0]) == [follower]
    else:
        assert run(found, 1, fails=True) == [follower]
    assert (found.size, len(found.live)) == (0, 0)
    assert found.submit(request(1)) is Refusal.UNKNOWN


def test_a_start_that_was_cancelled_behind_other_requests_ends_the_run_before_it_too() -> None:
    found = table()
    again = request(1, "s")
    for each in (request(1, "s"), request(1), again):
        assert found.submit(each) is None
    assert found.cancel("a", again.message.id) == [again]
    assert found.submit(request(1)) is Refusal.UNKNOWN, "the client believes that it has begun anew"
    run(found, 1)
    run(found, 1)
    assert not found.live


def test_a_failure_in_the_middle_does_not_end_a_sequence() -> None:
    found = table()
    assert found.submit(request(1, "s")) is None
    run(found, 1)
    assert found.submit(request(1)) is None
    assert run(found, 1, fails=True) == []
    assert found.submit(request(1)) is None


def test_a_sequence_that_begins_elsewhere_is_forgotten_with_its_requests() -> None:
    found = table()
    assert found.submit(request(1, "s")) is None
    run(found, 1)
    waiting = request(1)
    assert found.submit(waiting) is None
    assert found.submit(request(2, "s")) is None
    assert found.forget(1) == [waiting]
    assert found.forget(1) == []
    assert ready(found) == [2]
    assert found.size == 1


def check(of: SequenceTable[str], slots_there: int) -> None:
    """What holds at any time."""
    slots = [each.slot for each in of.live.values() if each.slot != NO_SLOT]
    assert len(set(slots)) == len(slots) <= slots_there
    assert all(0 <= each < slots_there for each in slots)
    assert not of.waiting or len(slots) == slots_there, "a sequence waits beside a free slot"
    assert of.size == sum(len(each.pending) for each in of.live.values())
    with_slot = {each.id: each for each in of.live.values() if each.slot != NO_SLOT}
    assert set(of.waiting) | set(with_slot) == set(of.live)
    assert not set(of.waiting) & set(with_slot)
    assert {number for number, each in with_slot.items() if each.pending} == set(of.ready)
    assert all(each.pending or each.has_begun for each in of.live.values())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_each_request_meets_the_state_of_the_start_before_it(seed: int) -> None:
    chance, now_ns = random.Random(seed), 0
    slots_there = chance.randint(1, 3)
    found = table(slots_there)
    starts: dict[int, int] = {}  # by sequence: the last START that its client has sent
    expected: dict[tuple[str, int], int] = {}  # by request: that START
    answered: set[tuple[str, int]] = set()
    sent: list[Request] = []

    def answer(*requests: Request) -> None:
        for each in requests:
            assert each.key not in answered, "answered twice"
            answered.add(each.key)

    for _ in range(300):
        now_ns += chance.randrange(3 * S)
        match chance.randrange(8):
            case 0 | 1 | 2:
                number, flags = chance.randrange(1, 6), chance.choice(["", "", "", "s", "s", "n", "e", "se"])
                made = request(number, flags, link=chance.choice(LINKS), at_ns=now_ns)
                made.message.deadline_ns = now_ns + chance.randrange(20 * S)
                sent.append(made)
                refusal = found.submit(made)
                if made.step.is_start and refusal is not Refusal.FULL:
                    starts[number] = made.message.id
                if refusal is None:
                    expected[made.key] = starts[number]
                else:
                    answer(made)
            case 3 | 4 if found.ready:
                sequence = chance.choice(list(found.ready.values()))
                taken = found.take(sequence)
                if taken.step.is_start:
                    sequence.memory = SequenceMemory()
                    sequence.memory.for_model["start"] = taken.message.id
                assert sequence.memory.for_model["start"] == expected[taken.key]
                answer(taken, *found.finish(sequence, taken, now_ns, has_failed=chance.random() < 0.2))
            case 5:
                answer(*[each for each, _ in found.pop_late(now_ns)], *found.forget(chance.randrange(1, 60)))
                found.end_idle(now_ns)
            case 6 if sent:
                victim = chance.choice(sent)
                gone = found.cancel(victim.link, victim.message.id)
                assert (gone[:1] == [victim]) == bool(gone)
                answer(*gone)
            case 7 if chance.random() < 0.2:
                mine = [each for live in found.live.values() for each in live.pending if each.link is LINKS[1]]
                answer(*mine, *found.drop_link(LINKS[1]))
        check(found, slots_there)
    waiting = {each.key for live in found.live.values() for each in live.pending}
    assert answered | waiting == {each.key for each in sent}
