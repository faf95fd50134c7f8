"""A history made by hand: a healthy and a crashy model, one crash, everything in order; for tests to spoil."""

from __future__ import annotations

from mmsup.supervisor.chaos.observe.history import (
    FaultFinished,
    FaultInjected,
    Invoke,
    LeakReport,
    Record,
    RequestOutcome,
    RevisionInForce,
    RunStarted,
    ServedCounts,
    ServerEvent,
    WorkerDeath,
)

MODELS = {"good": "healthy", "bad": "crashy", "new": "changing"}
OLD, NEW, NEWER = 100, 200, 250
"""Processes of `bad`, one after the other."""


def began(*, own_codes: bool = True) -> RunStarted:
    return RunStarted(1, 20.0, MODELS, "a machine", "a server", "mmsup chaos", 0.0, 2.0, own_codes)


def right(number: int, model: str, t: float, pid: int = 0, revision: int = 1) -> list[Record]:
    """A request that is served within 10 ms."""
    return [Invoke(t, number, model, t, 8), RequestOutcome(t + 0.01, number, "right", 200, pid=pid, revision=revision)]


def crash() -> list[Record]:
    """A segfault of `bad` at 5 s, seen by everybody; one other request fails with it, the next is served at 6 s."""
    return [
        FaultInjected(5.0, 1, "segv", "bad"),
        Invoke(5.0, 50, "bad", 5.0, 16, 1),
        Invoke(5.001, 51, "bad", 5.001, 8),
        WorkerDeath(5.02, "bad", OLD),
        RequestOutcome(5.03, 50, "error", 503, "worker_crashed"),
        RequestOutcome(5.03, 51, "error", 503, "worker_crashed"),
        ServerEvent(
            5.025, {"event": "worker_exit", "model": "bad", "pid": OLD, "cause": "signal SIGSEGV", "next_delay_s": 0.5}
        ),
        ServerEvent(5.9, {"event": "worker_ready", "model": "bad", "pid": NEW, "load_s": 0.3}),
        *right(52, "bad", 5.99, NEW),
        FaultFinished(6.0, 1, "worker_crashed"),
    ]


def poison() -> list[Record]:
    """A request of `bad` that aborts: two deaths, then it is refused; an innocent beside it is served in the end."""
    return [
        FaultInjected(10.0, 3, "poison", "bad"),
        Invoke(10.0, 90, "bad", 10.0, 16, 3),
        Invoke(10.0, 94, "bad", 10.0, 16, along=3),
        *death(10.1, NEW),
        RequestOutcome(10.11, 90, "error", 503, "worker_crashed"),
        RequestOutcome(10.11, 94, "error", 503, "worker_crashed"),
        Invoke(10.4, 91, "bad", 10.4, 16, 3, repeats=90),
        *death(11.0, NEWER),
        RequestOutcome(11.01, 91, "error", 503, "worker_crashed"),
        Invoke(12.0, 92, "bad", 12.0, 16, 3, repeats=90),
        RequestOutcome(12.1, 92, "error", 422, "request_quarantined"),
        Invoke(12.0, 95, "bad", 12.0, 16, along=3, repeats=94),
        RequestOutcome(12.2, 95, "right", 200, pid=300),
        Invoke(12.4, 93, "bad", 12.4, 16, 3, repeats=90),
        RequestOutcome(12.5, 93, "error", 422, "request_quarantined"),
        FaultFinished(13.0, 3, "request_quarantined"),
    ]


def poisoned() -> list[Record]:
    """The tale, and nothing is wrong with what comes after it."""
    after = ServedCounts(20.0, {"good": 19, "bad": 6, "new": 2})
    return [after if isinstance(each, ServedCounts) and each.t else each for each in tale()] + poison()


def death(t: float, pid: int) -> list[Record]:
    """A worker of `bad` aborts, as the kernel and the journal have it."""
    said = {"event": "worker_exit", "model": "bad", "pid": pid, "cause": "signal SIGABRT", "next_delay_s": 0.0}
    return [WorkerDeath(t, "bad", pid), ServerEvent(t + 0.01, said)]


def tale() -> list[Record]:
    """Nothing is wrong in it."""
    calm = [each for at in range(1, 20) for each in right(at, "good", float(at), 10)]
    served = [each for at in range(1, 5) for each in right(20 + at, "bad", float(at), OLD)]
    fresh = [*right(60, "new", 7.0), RevisionInForce(8.0, "new", 2), *right(61, "new", 8.5, revision=2)]
    return [
        began(), ServedCounts(0.0, {"good": 0, "bad": 0, "new": 0}), *calm, *served, *crash(), *fresh,
        ServedCounts(20.0, {"good": 19, "bad": 5, "new": 2}), LeakReport(20.0, "after the faults"),
    ]  # fmt: skip
