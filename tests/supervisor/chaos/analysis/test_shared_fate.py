"""What the checker says of models that share a process or memory: what hits one may hit the others, and nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos_tale import right
from mmsup.supervisor.chaos.analysis.checker import check
from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    Record,
    RequestOutcome,
    RunStarted,
    ServerEvent,
    WorkerDeath,
)

MODELS = {
    "good": "healthy",
    "one": "grouped",
    "two": "grouped",
    "large": "on_demand",
    "larger": "on_demand",
    "moved": "movable",
}
OLD, NEW = 100, 200


def ended(t: float, model: str, cause: str, instance: int, pid: int = OLD) -> ServerEvent:
    facts = {"event": "worker_exit", "model": model, "pid": pid, "cause": cause, "instance": instance}
    return ServerEvent(t, facts | {"next_delay_s": 0.0})


def ready(t: float, model: str) -> ServerEvent:
    return ServerEvent(t, {"event": "worker_ready", "model": model, "pid": NEW, "load_s": 0.1})


def crash() -> list[Record]:
    """`one` crashes at 5 s; `two` shares its process, and a request to it cannot be run again."""
    return [
        RunStarted(1, 20.0, MODELS, "a machine", "a server", "mmsup chaos", 0.0, 2.0),
        *right(1, "good", 4.0, 10),
        *right(2, "one", 4.0, OLD),
        *right(3, "two", 4.0, OLD),
        FaultInjected(5.0, 1, "group_segv", "one"),
        Invoke(5.0, 50, "one", 5.0, 16, 1),
        Invoke(5.0, 51, "two", 5.0, 8),
        WorkerDeath(5.02, "one", OLD),
        WorkerDeath(5.02, "two", OLD),
        ended(5.03, "one", "signal SIGSEGV", 1),
        ended(5.03, "two", "shared", 2),
        RequestOutcome(5.03, 50, "error", 503, "worker_crashed"),
        RequestOutcome(5.03, 51, "error", 503, "model_restarting"),
        ready(5.5, "one"),
        ready(5.6, "two"),
        *right(4, "one", 5.7, NEW),
        FaultFinished(5.8, 1, "worker_crashed"),
        *right(5, "two", 6.0, NEW),
    ]


def evictions() -> list[Record]:
    """The models on demand take turns."""
    return [
        *crash(),
        FaultInjected(10.0, 2, "evict", "large"),
        *right(60, "large", 10.1, 30),
        ServerEvent(10.4, {"event": "model_asleep", "model": "large", "reason": "evicted"}),
        WorkerDeath(10.5, "large", 30),
        ServerEvent(10.5, {"event": "worker_stopped", "model": "large", "pid": 30, "instance": 3}),
        *right(61, "larger", 10.9, 31),
        Invoke(11.0, 62, "large", 11.0, 16, along=2),
        RequestOutcome(12.0, 62, "error", 503, "evicted"),
        FaultFinished(13.0, 2),
    ]


def rules(records: list[Record]) -> list[str]:
    return [each.rule for each in check(records)]


def changed(records: list[Record], before: Record, after: Record) -> list[Record]:
    assert before in records
    return [after if each == before else each for each in records]


def test_what_ends_the_process_of_a_group_ends_it_for_all_of_them_and_all_come_back() -> None:
    assert rules(crash()) == []


@pytest.mark.parametrize(
    ("before", "after", "rule", "text"),
    [
        (ended(5.03, "two", "shared", 2), ended(5.03, "two", "signal SIGSEGV", 2), "death", "'signal SIGSEGV'"),
        (ended(5.03, "one", "signal SIGSEGV", 1), ended(5.03, "one", "shared", 1), "death", "'shared'"),
        (
            ended(5.03, "two", "shared", 2),
            ended(5.03, "one", "signal SIGSEGV", 1),
            "death",
            "of two at 5.020 s stands 0",
        ),
        (
            RequestOutcome(5.03, 51, "error", 503, "model_restarting"),
            RequestOutcome(5.03, 51, "error", 503, "worker_crashed"),
            *("explained", "request 51 to two failed"),
        ),
        (right(5, "two", 6.0, NEW)[1], right(5, "two", 6.0, OLD)[1], "back", "two did not serve again"),
        (right(5, "two", 6.0, NEW)[1], right(5, "two", 18.0, NEW)[1], "back", "two served again"),
        (WorkerDeath(5.02, "two", OLD), WorkerDeath(5.02, "good", 10), "death", "a worker of good died"),
    ],
)
def test_who_shares_the_process_is_neither_blamed_nor_forgotten_and_others_keep_theirs(
    before: Record, after: Record, rule: str, text: str
) -> None:
    findings = check(changed(crash(), before, after))
    assert any(each.rule == rule and text in each.text for each in findings), [str(each) for each in findings]


def test_a_load_that_ends_the_process_has_an_end_of_its_own_beside_that_of_the_older_instance() -> None:
    load = [replace(each, fault="group_load") if isinstance(each, FaultInjected) else each for each in crash()]
    load = [each for each in load if getattr(each, "id", 0) != 50]
    both = [*changed(load, ended(5.03, "one", "signal SIGSEGV", 1), ended(5.03, "one", "shared", 1))]
    assert rules([*both, ended(5.03, "one", "signal SIGSEGV", 9)]) == []
    assert rules([*both, ended(5.03, "one", "shared", 1)]) == ["death"]


def test_models_on_demand_go_for_each_other_and_requests_fail_for_want_of_room_alone() -> None:
    assert rules(evictions()) == []
    refused = RequestOutcome(12.0, 62, "error", 503, "evicted")
    assert rules(changed(evictions(), refused, replace(refused, code="worker_crashed"))) == ["explained"]
    stayed = [each for each in evictions() if getattr(each, "event", {}).get("event") != "model_asleep"]
    assert [each.text for each in check(stayed)] == ["fault 2 (evict of large) had no model put to sleep"]
    late: list[Record] = [Invoke(15.0, 63, "large", 15.0, 8), RequestOutcome(15.1, 63, "error", 503, "evicted")]
    assert rules([*evictions(), *late]) == ["explained"]


def move() -> list[Record]:
    """`moved` is killed on its way to host memory, and who asked meanwhile is answered by the next worker."""
    return [
        RunStarted(1, 20.0, MODELS, "a machine", "a server", "mmsup chaos", 0.0, 2.0),
        *right(1, "moved", 4.0, OLD),
        FaultInjected(5.0, 1, "kill_offloading", "moved"),
        Invoke(5.0, 50, "moved", 5.0, 16, along=1),
        WorkerDeath(5.02, "moved", OLD),
        ended(5.03, "moved", "signal SIGKILL", 1),
        ready(5.5, "moved"),
        RequestOutcome(5.6, 50, "right", 200, pid=NEW),
        FaultFinished(5.8, 1),
    ]


def test_no_request_may_fail_of_a_move_to_host_memory_although_its_worker_dies() -> None:
    assert rules(move()) == []
    answer = RequestOutcome(5.6, 50, "right", 200, pid=NEW)
    failed = changed(move(), answer, RequestOutcome(5.6, 50, "error", 503, "model_restarting"))
    assert "explained" in rules([*failed, *right(2, "moved", 5.7, NEW)])
    alive = [each for each in move() if not isinstance(each, WorkerDeath)]
    assert [each.text for each in check([*alive, WorkerDeath(9.0, "good", 7)])][-1:] == [
        "fault 1 (kill_offloading of moved) killed no worker"
    ]
