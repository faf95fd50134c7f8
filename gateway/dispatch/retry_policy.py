"""The retry policy: what becomes of a request whose worker exited. Pure.

A request that had not started to execute is sent to the next worker, unnoticed by its client, but not more than
LOST_WORKERS_LIMIT times. One that was executing is answered with the verdict on the worker, or run once more where the
model allows it; never after an out-of-memory or a hang, which would kill the next worker too. One that had executed
before, whose reply went down with the worker, is no cause of the exit: where the model allows it to be run again, that
is not held against it, within the same limit.
"""

from __future__ import annotations

from typing import Final

from mmsup.gateway.dispatch.in_flight import WorkerExited
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.poison_policy import RETRYABLE_CAUSES, PoisonEntry

LOST_WORKERS_LIMIT: Final = 3
"""After so many workers exited with this request it is answered with an error, even if their status pages say that it
never started: a worker that erases its page could otherwise take all others with it."""


def needs_verdict(exited: WorkerExited, lost_workers: int) -> bool:
    """Whether the request may have been executing, so that it must not simply be sent to the next worker."""
    return exited.started or lost_workers >= LOST_WORKERS_LIMIT


def may_rerun(verdict: MmsupError, *, is_first: bool, is_in_time: bool, retry_on_crash: bool) -> bool:
    """Whether a request that had started is run once more. `is_first`: it has not been run again before, or only its
    reply was lost (`lost_only_its_reply`)."""
    return is_first and is_in_time and retry_on_crash and verdict.code in RETRYABLE_CAUSES


def lost_only_its_reply(exited: WorkerExited, lost_workers: int) -> bool:
    """Whether the request had executed and its worker had survived that. With ZeroMQ such replies are lost whenever the
    next run ends the worker before libzmq's thread has written them."""
    return exited.started and not exited.executing and lost_workers < LOST_WORKERS_LIMIT


def is_own_fault(verdict: MmsupError, exited: WorkerExited, entry: PoisonEntry | None) -> bool:
    """Whether the client must not send the request again: it needed the memory, or it is blocked as poison."""
    is_blocked = entry is not None and entry.blocked
    return is_blocked or (verdict.code in ("worker_oom", "gpu_oom") and exited.alone)
