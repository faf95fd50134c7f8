"""The ledger of one link: every entry ends once, and says whether it may have run."""

from __future__ import annotations

from mmsup.gateway.dispatch.in_flight import Entry, Ledger, LifeEnded, Said
from mmsup.ipc.messages.data import Infer


def entry(ledger: Ledger, heard: list[Said]) -> Entry:
    request = Infer(ledger.next_id(), b"", 0, None, ())
    made = Entry(request, [], heard.append)
    ledger.add(made)
    return made


def begun(heard: list[Said]) -> tuple[bool, bool]:
    (said,) = heard
    assert isinstance(said, LifeEnded)
    return said.begun, said.alone


def test_at_the_end_each_entry_hears_whether_its_own_id_had_begun_in_whatever_order() -> None:
    ledger = Ledger()
    heard: list[list[Said]] = [[], [], []]
    entries = [entry(ledger, each) for each in heard]
    ledger.end({entries[2].request.id, 7})
    assert [begun(each) for each in heard] == [(False, True), (False, True), (True, True)]
    assert not ledger


def test_a_request_that_was_asked_a_larger_grant_ran_however_many_ran_since() -> None:
    ledger = Ledger()
    heard: list[list[Said]] = [[], []]
    first, second = (entry(ledger, each) for each in heard)
    first.asked_again = 1
    ledger.end({second.request.id})
    assert [begun(each) for each in heard] == [(True, False), (True, False)]


def test_who_was_told_hears_nothing_more_and_still_counts_as_company() -> None:
    ledger = Ledger()
    heard: list[list[Said]] = [[], []]
    left, stayed = (entry(ledger, each) for each in heard)
    left.told = True
    ledger.end({left.request.id, stayed.request.id})
    assert heard[0] == []
    assert begun(heard[1]) == (True, False)


def test_the_end_names_what_ended_with_it_whoever_had_been_told() -> None:
    ledger = Ledger()
    entries = [entry(ledger, []) for _ in range(3)]
    entries[0].told = True
    lost = ledger.end({entries[1].request.id})
    assert [(each.entry, each.begun) for each in lost] == [(entries[0], False), (entries[1], True), (entries[2], False)]
    assert ledger.end(set()) == []
