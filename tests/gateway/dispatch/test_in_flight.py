"""The ledger of one link: every entry ends once, and says whether it may have run."""

from __future__ import annotations

from mmsup.gateway.dispatch.in_flight import InFlightRequest, InFlightTable, RequestEvent, WorkerExited
from mmsup.ipc.messages.data import Infer


def entry(ledger: InFlightTable, heard: list[RequestEvent]) -> InFlightRequest:
    request = Infer(ledger.next_id(), b"", 0, None, ())
    made = InFlightRequest(request, [], heard.append)
    ledger.add(made)
    return made


def begun(heard: list[RequestEvent]) -> tuple[bool, bool]:
    (said,) = heard
    assert isinstance(said, WorkerExited)
    return said.started, said.alone


def test_at_the_end_each_entry_hears_whether_its_own_id_had_begun_in_whatever_order() -> None:
    ledger = InFlightTable()
    heard: list[list[RequestEvent]] = [[], [], []]
    entries = [entry(ledger, each) for each in heard]
    ledger.close({entries[2].message.id, 7})
    assert [begun(each) for each in heard] == [(False, True), (False, True), (True, True)]
    assert not ledger


def test_a_request_that_was_asked_a_larger_grant_ran_however_many_ran_since() -> None:
    ledger = InFlightTable()
    heard: list[list[RequestEvent]] = [[], []]
    first, second = (entry(ledger, each) for each in heard)
    first.larger_grants = 1
    ledger.close({second.message.id})
    assert [begun(each) for each in heard] == [(True, False), (True, False)]


def test_who_was_told_hears_nothing_more_and_still_counts_as_company() -> None:
    ledger = InFlightTable()
    heard: list[list[RequestEvent]] = [[], []]
    left, stayed = (entry(ledger, each) for each in heard)
    left.notified = True
    ledger.close({left.message.id, stayed.message.id})
    assert heard[0] == []
    assert begun(heard[1]) == (True, False)


def test_the_end_names_what_ended_with_it_whoever_had_been_told() -> None:
    ledger = InFlightTable()
    entries = [entry(ledger, []) for _ in range(3)]
    entries[0].notified = True
    lost = ledger.close({entries[1].message.id})
    assert [(each.request, each.started) for each in lost] == [
        (entries[0], False),
        (entries[1], True),
        (entries[2], False),
    ]
    assert ledger.close(set()) == []
