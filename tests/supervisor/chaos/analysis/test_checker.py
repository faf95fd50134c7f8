"""Each rule of the checker finds what is planted for it in a history that is otherwise in order, and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from chaos_tale import NEW, OLD, began, crash, poisoned, right, tale
from mmsup.supervisor.chaos.analysis.checker import RULES, check
from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    LeakReport,
    Record,
    RequestOutcome,
    RevisionInForce,
    ServedCounts,
    ServerEvent,
    WorkerDeath,
)
from mmsup.supervisor.chaos.plan.catalog import QUARANTINED

Spoil = Callable[[list[Record]], list[Record]]


def without(record: type[Record], /, **fields: object) -> Spoil:
    """The records but those of this kind with these fields."""

    def spoil(records: list[Record]) -> list[Record]:
        kept = [each for each in records if not (isinstance(each, record) and _has(each, fields))]
        assert len(kept) < len(records)
        return kept

    return spoil


def changed(record: type[Record], where: dict[str, object], /, **to: Any) -> Spoil:  # any field
    """Those of this kind with these fields, changed."""

    def spoil(records: list[Record]) -> list[Record]:
        return [
            dataclasses.replace(each, **to) if isinstance(each, record) and _has(each, where) else each
            for each in records
        ]

    return spoil


def with_more(*more: Record) -> Spoil:
    return lambda records: [*records, *more]


def _has(record: Record, fields: dict[str, object]) -> bool:
    return all(getattr(record, name) == value for name, value in fields.items())


def exit_event(cause: str) -> dict[str, object]:
    return {"event": "worker_exit", "model": "bad", "pid": OLD, "cause": cause, "next_delay_s": 0.5}


SPOILT: list[tuple[str, Spoil, str]] = [
    ("outcome", without(RequestOutcome, id=7), "request 7 to good has no outcome"),
    ("outcome", with_more(RequestOutcome(9.0, 7, "right", 200)), "request 7 to good has 2 outcomes"),
    ("outcome", with_more(RequestOutcome(9.0, 7, "stray")), "right, stray"),
    ("outcome", changed(RequestOutcome, {"id": 7}, kind="timeout"), "got no reply"),
    ("outcome", with_more(RequestOutcome(9.0, 0, "stray")), "an outcome of no request"),
    ("bytes", changed(RequestOutcome, {"id": 7}, kind="wrong"), "other bytes than it sent"),
    ("crossed", changed(RequestOutcome, {"id": 7}, kind="crossed", whose=21), "got the bytes of request 21 to bad"),
    ("healthy", changed(RequestOutcome, {"id": 7}, kind="error", code="worker_crashed"), "request 7 to good failed"),
    ("healthy", changed(RequestOutcome, {"id": 7}, kind="reset"), "request 7 to good failed: reset"),
    ("explained", changed(RequestOutcome, {"id": 22}, kind="error", code="worker_crashed"), "without a fault"),
    ("explained", changed(RequestOutcome, {"id": 51}, code="internal"), "request 51 to bad failed at 5.030 s"),
    ("harm", changed(RequestOutcome, {"id": 50}, code="worker_hung"), "expected worker_crashed"),
    ("harm", changed(RequestOutcome, {"id": 50}, t=15.0), "was answered 10.0 s after the death"),
    ("refused", changed(RequestOutcome, {"id": 7}, kind="refused"), "found nobody at the door"),
    ("death", with_more(WorkerDeath(15.0, "good", 10)), "a worker of good died at 15.000 s without a fault"),
    ("death", without(ServerEvent, t=5.025), "stands 0 times in the journal"),
    ("death", with_more(ServerEvent(5.1, exit_event("signal SIGSEGV"))), "stands 2 times in the journal"),
    ("death", changed(ServerEvent, {"t": 5.025}, event=exit_event("oom")), "is in the journal as 'oom'"),
    ("death", lambda records: [*tale_without_death(records), WorkerDeath(8.0, "new", 5)], "killed nobody"),
    ("back", without(RequestOutcome, id=52), "bad did not serve again after fault 1"),
    ("back", changed(RequestOutcome, {"id": 52}, t=18.0), "came back 12.2 s late"),
    ("stale", changed(RequestOutcome, {"id": 61}, revision=1), "by edition 1 of new after edition 2 had taken its place"),
    ("stale", changed(RevisionInForce, {"revision": 2}, revision=0), "was served after new had been unloaded"),
    ("house", with_more(ServerEvent(9.0, {"event": "brain_exit"})), "1 times brain_exit, 0 were brought about"),
    ("house", with_more(ServerEvent(9.0, {"event": "gateway_exit"})), "1 times gateway_exit"),
    ("counted", changed(ServedCounts, {"t": 20.0}, success={"good": 25, "bad": 5, "new": 2}), "the server counted 25"),
    ("counted", changed(ServedCounts, {"t": 20.0}, success={"good": 1, "bad": 5, "new": 2}), "the server counted 1"),
    ("left", with_more(LeakReport(20.0, "after the faults", ["I7 0 requests open, 64 bytes of slots in use"])), "I7"),
    ("left", with_more(LeakReport(20.0, "after the faults", ["I2 1 children were not reaped"])), "not reaped"),
]  # fmt: skip


POISONED: list[tuple[Spoil, str]] = [
    (changed(RequestOutcome, {"code": QUARANTINED}, code="worker_crashed"), "was sent 4 times and never refused"),
    (with_more(WorkerDeath(11.5, "bad", 300)), "cost 3 deaths"),
    (with_more(WorkerDeath(12.6, "bad", 300)), "ended a worker after it had been refused"),
    (changed(RequestOutcome, {"id": 93}, code="worker_crashed"), "had been refused, and then"),
    (changed(RequestOutcome, {"id": 91}, kind="right", code=""), "was sent again: right"),
    (changed(RequestOutcome, {"id": 95}, kind="error", code="worker_crashed"), "request 95 to bad, innocent beside"),
]  # fmt: skip


def tale_without_death(records: list[Record]) -> list[Record]:
    return without(WorkerDeath, pid=OLD)(records)


def test_a_history_in_order_has_no_findings() -> None:
    assert check(tale()) == []


@pytest.mark.parametrize("name", ["kill_brain", "kill_gateway"])
def test_a_poison_may_cost_more_where_somebody_who_knew_it_was_hurt(name: str) -> None:
    event = "brain_exit" if name == "kill_brain" else "gateway_exit"
    hurt: list[Record] = [FaultInjected(10.9, 8, name, ""), FaultFinished(11.2, 8), ServerEvent(11.2, {"event": event})]
    more: list[Record] = [
        WorkerDeath(11.5, "bad", 300),
        ServerEvent(11.5, {"event": "worker_exit", "model": "bad", "pid": 300}),
    ]
    assert [each.rule for each in check([*poisoned(), *more])] == ["poison"]
    assert check([*poisoned(), *more, *hurt]) == []


def test_everything_may_end_with_the_keeper_and_nothing_at_another_time() -> None:
    killed: list[Record] = [
        FaultInjected(15.0, 9, "kill_keeper", ""),
        WorkerDeath(15.01, "good", 10),
        Invoke(14.99, 98, "good", 14.99, 8),
        RequestOutcome(15.02, 98, "reset"),
        FaultFinished(17.0, 9),
    ]
    assert check([*tale(), *killed]) == []
    late: list[Record] = [
        WorkerDeath(17.2, "good", 11),
        Invoke(18.5, 99, "good", 18.5, 8),
        RequestOutcome(18.6, 99, "reset"),
    ]
    assert [each.rule for each in check([*tale(), *killed, *late])] == ["healthy", "death"]
    failed: list[Record] = [Invoke(15.1, 99, "good", 15.1, 8), RequestOutcome(15.2, 99, "error", 503, "worker_crashed")]
    assert [each.rule for each in check([*tale(), *killed, *failed])] == ["healthy"]


def test_a_worker_that_is_thawed_before_there_is_a_brain_lives_on() -> None:
    frozen: list[Record] = [FaultInjected(10.0, 8, "freeze_worker", "bad"), FaultFinished(17.0, 8)]
    hurt: list[Record] = [
        FaultInjected(11.0, 9, "stop_brain", ""),
        FaultFinished(16.5, 9),
        ServerEvent(16.5, {"event": "brain_exit"}),
    ]
    assert [each.text for each in check([*tale(), *frozen])] == ["fault 8 (freeze_worker of bad) killed nobody"]
    assert check([*tale(), *frozen, *hurt]) == []


@pytest.mark.parametrize(("rule", "spoil", "text"), SPOILT)
def test_what_is_planted_is_found_by_its_rule(rule: str, spoil: Spoil, text: str) -> None:
    findings = check(spoil(tale()))
    assert any(each.rule == rule and text in each.text for each in findings), [str(each) for each in findings]


@pytest.mark.parametrize(("spoil", "text"), POISONED)
def test_a_poison_that_is_not_refused_as_it_should_is_found(spoil: Spoil, text: str) -> None:
    assert check(poisoned()) == []
    findings = check(spoil(poisoned()))
    assert any(each.rule == "poison" and text in each.text for each in findings), [str(each) for each in findings]


def test_every_rule_is_planted_for() -> None:
    assert {rule for rule, _, _ in SPOILT} | {"poison"} == set(RULES)


def gateway_killed(kind: str = "kill_gateway") -> list[Record]:
    return [
        FaultInjected(10.2, 2, kind, ""),
        Invoke(10.1, 70, "good", 10.1, 8),
        RequestOutcome(10.25, 70, "reset"),
        FaultFinished(11.0, 2),
        ServerEvent(10.4, {"event": "gateway_exit"}),
    ]


def test_connections_may_break_with_their_gateway_but_not_before_and_not_long_after() -> None:
    assert check([*tale(), *gateway_killed()]) == []
    early: list[Record] = [Invoke(9.0, 71, "good", 9.0, 8), RequestOutcome(9.1, 71, "reset")]
    late: list[Record] = [Invoke(13.0, 72, "good", 13.0, 8), RequestOutcome(13.1, 72, "reset")]
    assert [each.rule for each in check([*tale(), *gateway_killed(), *early, *late])] == ["healthy", "healthy"]


def test_a_worker_that_a_load_replaced_has_not_died_without_a_fault() -> None:
    renewed: list[Record] = [
        FaultInjected(12.0, 3, "reload", "new"),
        WorkerDeath(12.5, "new", 5),
        ServerEvent(12.5, {"event": "worker_stopped", "model": "new", "pid": 5}),
        FaultFinished(12.6, 3, "load 200"),
    ]
    assert check([*tale(), *renewed]) == []


def test_a_load_that_a_dead_brain_left_to_the_next_may_end_a_worker_late_but_only_in_good_order() -> None:
    late: list[Record] = [
        FaultInjected(12.0, 3, "load_raises", "new"),
        FaultFinished(12.1, 3, "load 503"),
        ServerEvent(14.4, {"event": "model_reloaded", "model": "new"}),
        WorkerDeath(14.5, "new", 5),
        ServerEvent(14.5, {"event": "worker_stopped", "model": "new", "pid": 5}),
    ]
    assert check([*tale(), *late]) == []
    assert [each.rule for each in check([*tale(), *late[:2], *late[3:]])] == ["death"]


def test_requests_to_a_model_that_is_unloaded_may_hear_that_it_is_unknown() -> None:
    absent: list[Record] = [
        FaultInjected(12.0, 3, "unload_load", "new"),
        RevisionInForce(12.1, "new", 0),
        Invoke(12.2, 80, "new", 12.2, 8),
        RequestOutcome(12.21, 80, "error", 404, "unknown_model"),
        RevisionInForce(12.4, "new", 2),
        FaultFinished(12.6, 3, "load 200"),
    ]
    assert check([*tale(), *absent]) == []
    late: list[Record] = [Invoke(14.0, 81, "new", 14.0, 8), RequestOutcome(14.01, 81, "error", 404, "unknown_model")]
    assert [each.rule for each in check([*tale(), *absent, *late])] == ["explained"]


def test_a_request_that_did_harm_may_be_answered_with_less_while_the_brain_is_away() -> None:
    away: list[Record] = [
        FaultInjected(4.9, 2, "kill_brain", ""),
        FaultFinished(5.5, 2),
        ServerEvent(5.5, {"event": "brain_exit"}),
    ]
    spoilt = changed(RequestOutcome, {"id": 50}, code="model_restarting")(tale())
    assert [each.rule for each in check(spoilt)] == ["harm"]
    assert check([*spoilt, *away]) == []


def test_of_another_server_only_what_http_shows_is_asked() -> None:
    records = [
        began(own_codes=False),
        *right(1, "good", 1.0),
        FaultInjected(5.0, 1, "segv", "bad"),
        Invoke(5.0, 50, "bad", 5.0, 16, 1),
        RequestOutcome(5.1, 50, "error", 500, "http_500"),
        *right(51, "bad", 6.0),
        FaultFinished(5.1, 1),
    ]
    assert check(records) == []
    assert [each.rule for each in check([each for each in records if getattr(each, "id", 0) != 51])] == ["back"]


def test_a_fault_that_met_nobody_needs_no_death() -> None:
    assert (
        check([*tale(), FaultInjected(15.0, 4, "kill_idle", "bad"), FaultFinished(15.0, 4, "nobody was there")]) == []
    )
    assert check([*tale(), FaultInjected(15.0, 4, "kill_idle", "bad", done=False)]) == []


def test_the_crash_of_the_tale_is_seen_as_it_was() -> None:
    from mmsup.supervisor.chaos.analysis.checker import recovery_s
    from mmsup.supervisor.chaos.analysis.timeline import timeline_of

    (blow,) = timeline_of([began(), *crash()]).faults
    assert (blow.death, blow.recovered_s) == (WorkerDeath(5.02, "bad", OLD), 6.0)
    assert (blow.load_s, blow.pause_s, blow.reported_s) == (0.3, 0.5, 5.025)
    assert recovery_s(blow) == pytest.approx(0.18)
    assert NEW != OLD


def test_a_history_without_a_beginning_is_none() -> None:
    with pytest.raises(ValueError, match="did not begin"):
        check(crash())
