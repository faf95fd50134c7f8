"""A real worker process with a queue: which requests run first, which wait for others, which never run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model
from engines.real_worker import FakeGateway, serving
from harness.server import eventually
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.data import Cancel, Infer, InferReply
from mmsup.ipc.specs import Batching, QueuePolicy
from mmsup.ipc.tensors.numpy_arrays import Array

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)
LONG_S = 5.0
"""Longer than any test takes."""


def busy(gateway: FakeGateway, seconds: float = 0.2) -> Infer:
    """A request that keeps the model busy while others queue; it is sent with them, in one frame."""
    return gateway.infer(mode("sleep", seconds), priority=1)


def row() -> dict[str, Array]:
    return {"x": X[None, :2]}


def receive(gateway: FakeGateway, count: int) -> list[InferReply]:
    return [gateway.reply() for _ in range(count)]


def test_a_higher_priority_runs_first_and_within_one_the_first_to_arrive(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (worker, gateway):
        first = busy(gateway)
        others = [gateway.infer({"x": X}, priority=each) for each in (0, 2, 90, 2, 0)]
        gateway.send(first, *others)
        plain, high, low, high_too, plain_too = (each.id for each in others)
        assert [each.id for each in receive(gateway, 6)] == [first.id, high, high_too, plain, plain_too, low]
        assert worker.page.started() == {first.id, *(each.id for each in others)}


def test_all_that_came_during_a_run_is_received_before_the_next_one_is_chosen(repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m", max_batch_size=8), tmp_path) as (worker, gateway):
        held = gateway.infer({**row(), "mode": np.array([[b"sleep"]], np.object_), "amount": np.array([[0.3]])})
        gateway.send(held)
        eventually(lambda: worker.progress().activity is Activity.BUSY, "it runs")
        low, *plain = [gateway.infer(row(), priority=each) for each in (90, 0, 0, 0)]
        cancelled = gateway.infer(row(), priority=1)
        came: list[Infer | Cancel] = [low, *plain, cancelled, Cancel(cancelled.id)]
        for each in came:
            gateway.send(each)
        replies = receive(gateway, 6)
        assert [(each.id, each.batch) for each in replies if each.id in {x.id for x in plain}] == [
            (each.id, 4) for each in plain
        ]
        assert [each.code for each in replies if each.id == cancelled.id] == ["cancelled"]
        assert replies[-1].id == low.id, "of a lower priority, and so the last of the batch"


@pytest.mark.parametrize("max_batch_size", [0, 8])
def test_a_request_that_runs_alone_runs_after_earlier_replies_and_is_answered_before_the_next(
    repository: Path, tmp_path: Path, max_batch_size: int
) -> None:
    spec = write_fault_model(repository, "m", max_batch_size=max_batch_size)
    with serving(spec, tmp_path) as (worker, gateway):
        inputs = row() if max_batch_size else {"x": X}
        shape = (1, 1) if max_batch_size else (1,)
        evil = {**inputs, "mode": np.full(shape, b"abort", np.object_)}
        before = [gateway.infer(inputs) for _ in range(3)]
        alone = [gateway.infer(inputs, runs_alone=True) for _ in range(2)]
        poison = gateway.infer(evil, runs_alone=True)
        behind = gateway.infer(inputs)
        gateway.send(*before, *alone, poison, behind)
        replies = receive(gateway, 5)
        assert [each.id for each in replies] == [each.id for each in (*before, *alone)]
        assert [each.batch for each in replies[3:]] == [1, 1]
        worker.wait_exit()
        assert worker.page.executing() == {poison.id}
        assert behind.id not in worker.page.started()


def test_a_request_of_a_full_priority_is_refused_at_once_and_the_others_wait(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), queue_policies=(QueuePolicy(7, max_queue=1),))
    with serving(spec, tmp_path) as (_, gateway):
        first = busy(gateway)
        others = [gateway.infer({"x": X}, priority=each) for each in (7, 7, 8)]
        gateway.send(first, *others)
        codes = {each.id: each.code for each in receive(gateway, 4)}
        assert codes == {first.id: "", others[0].id: "", others[1].id: "queue_full", others[2].id: ""}


def test_a_request_that_expires_or_is_cancelled_in_the_queue_never_runs(repository: Path, tmp_path: Path) -> None:
    policy = QueuePolicy(7, timeout_s=0.05)
    spec = replace(write_fault_model(repository, "m"), queue_policies=(policy,))
    with serving(spec, tmp_path) as (_, gateway):
        first = busy(gateway)
        late, cancelled = gateway.infer({"x": X}, deadline_s=0.05), gateway.infer({"x": X})
        timed_out = gateway.infer({"x": X}, priority=7)
        gateway.send(first, late, cancelled, timed_out, Cancel(cancelled.id))
        codes = {each.id: each.code for each in receive(gateway, 4)}
        late_codes = {late.id: "deadline_exceeded", timed_out.id: "deadline_exceeded"}
        assert codes == {first.id: "", cancelled.id: "cancelled", **late_codes}
        assert gateway.array(gateway.request({"x": X}), "runs").tolist() == [2], "the busy one and this one"


def test_a_single_caller_never_waits_for_others(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m", max_batch_size=8), batching=Batching(delay_s=LONG_S))
    with serving(replace(spec, hang_limit_s=100.0), tmp_path) as (_, gateway):
        began = time.monotonic()
        for _ in range(20):
            assert gateway.request(row()).batch == 1
        assert time.monotonic() - began < LONG_S


def test_requests_that_arrive_apart_run_together_if_they_did_lately(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m", max_batch_size=8), batching=Batching(delay_s=LONG_S))
    with serving(replace(spec, hang_limit_s=100.0), tmp_path) as (_, gateway):
        gateway.send(*[gateway.infer(row()) for _ in range(3)])
        assert [each.batch for each in receive(gateway, 3)] == [3, 3, 3]
        began = time.monotonic()
        for _ in range(3):
            gateway.send(gateway.infer(row()))
        assert [each.batch for each in receive(gateway, 3)] == [3, 3, 3]
        assert time.monotonic() - began < LONG_S


def test_a_request_that_waits_in_vain_for_others_runs_in_time_for_its_deadline(
    repository: Path, tmp_path: Path
) -> None:
    spec = replace(write_fault_model(repository, "m", max_batch_size=8), batching=Batching(delay_s=LONG_S))
    with serving(replace(spec, hang_limit_s=100.0), tmp_path) as (_, gateway):
        gateway.send(*[gateway.infer(row()) for _ in range(3)])
        assert len(receive(gateway, 3)) == 3
        gateway.send(gateway.infer(row(), deadline_s=0.3))
        (reply,) = receive(gateway, 1)
        assert (reply.code, reply.batch) == ("", 1)
        assert reply.queue_ns > 100_000_000, "it waited, but not for the whole delay"
        assert gateway.request(row()).queue_ns < 100_000_000, "and no request waits for others any more"


@pytest.mark.alone
def test_a_delay_shorter_than_a_millisecond_is_honoured(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m", max_batch_size=8), batching=Batching(delay_s=0.0003))
    with serving(spec, tmp_path) as (_, gateway):
        waited: list[int] = []
        for _ in range(20):
            gateway.send(gateway.infer(row()), gateway.infer(row()))
            receive(gateway, 2)
            waited.append(gateway.request(row()).queue_ns)
        assert min(waited) >= 300_000
        assert sorted(waited)[10] < 1_000_000


def test_a_latency_objective_decides_the_batch_size(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m", max_batch_size=64), batching=Batching(objective_s=0.1))
    sleeps = {**row(), "mode": np.array([[b"sleep"]], np.object_), "amount": np.array([[0.01]])}
    with serving(replace(spec, hang_limit_s=100.0), tmp_path) as (_, gateway):
        gateway.send(*[gateway.infer(sleeps) for _ in range(8)])
        seen: list[InferReply] = []
        for _ in range(300):
            seen.append(gateway.reply())
            gateway.send(gateway.infer(sleeps))
        receive(gateway, 8)
        sizes = [each.batch for each in seen[-100:]]
        assert 2 <= max(sizes) <= 5, "five rows of 10 ms are half of 100 ms"
        assert max(each.batch for each in seen[:8]) <= 2, "it began with small ones"
