"""Queues: deadlines, bounds, priorities, cancelled requests and several instances.

A model that is held on request stands for one that is at work; `runs` in its answers says what ran, and together with
what.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from harness.invariants import assert_gone, server_processes
from harness.server import Http, Json, Server, eventually, serving
from harness.victim import BYSTANDER, HANG_LIMIT_S, BackgroundCall, Victim, bystander_repository, run_number, victim

pytestmark = pytest.mark.slow
LATE_S = 0.05
"""Promised limit for the delay of an answer after its deadline."""
REFUSAL_S = 0.01
"""Promised limit for the time of a refusal."""
PATIENT: Any = {"hang_limit": "30s"}  # options of `victim`


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = bystander_repository(tmp_path_factory.mktemp("repository"))
    with serving(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER) as running:
        http = Http(running.address())
        http.infer(BYSTANDER, x=("FP32", [5000], [0.0] * 5000))  # large enough for memory of its own
        http.close()
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


def open_requests(hurt: Victim) -> float:
    return hurt.server.gauge("mmsup_requests_open", model=hurt.name)


# Deadlines.


@pytest.mark.alone
def test_a_timeout_is_kept_in_the_queue_and_in_the_run_and_later_requests_are_served(server: Server) -> None:
    with victim(server, "in_time", **PATIENT) as hurt:
        pid, late = server.pid(hurt.name), []
        for _ in range(3):
            with hurt.held(timeout=250_000) as running:
                waiting = hurt.in_background(timeout=100_000)
                for each, timeout_s in ((waiting, 0.1), (running, 0.25)):
                    status, reply = each.result()
                    assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
                    assert each.took_s >= timeout_s
                    late.append(each.took_s - timeout_s)
            hurt.assert_serves()
        assert min(late) < LATE_S, f"late by {late}"
        assert hurt.runs() == 1 + 3 * 2 + 1, "the first call, the held ones and those after them: none that was late"
        assert server.pid(hurt.name) == pid


@pytest.mark.alone
def test_the_models_own_deadline_holds_for_a_request_that_names_none_and_for_one_that_names_more(
    server: Server,
) -> None:
    with victim(server, "own_deadline", deadline="250ms", **PATIENT) as hurt:
        late: list[float] = []
        for timeout in (0, 10_000_000, 0, 10_000_000):
            with hurt.held(timeout=timeout) as call:
                status, reply = call.result()
            assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
            late.append(call.took_s - 0.25)
            hurt.assert_serves()
        assert 0 <= min(late) < LATE_S, f"late by {late}"


def test_what_runs_past_the_hang_limit_costs_its_worker_though_its_caller_has_long_been_answered(
    server: Server,
) -> None:
    with victim(server, "late_and_hung") as hurt:
        pid = server.pid(hurt.name)
        call = hurt.in_background("hang", timeout=100_000)
        status, reply = call.result()
        assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
        assert call.took_s < HANG_LIMIT_S
        hurt.assert_serves()
        assert "hung" in hurt.death()["cause"]
        assert server.pid(hurt.name) != pid


@pytest.mark.alone
def test_a_timeout_is_kept_while_the_model_comes_back(server: Server) -> None:
    with victim(server, "coming_back", on_load="sleep", on_load_amount=1.0, **PATIENT) as hurt:
        hurt.send("exit", 3)
        call = hurt.in_background(timeout=100_000)
        status, reply = call.result()
        assert (status, reply["code"]) == (504, "deadline_exceeded"), reply
        assert 0.1 <= call.took_s < 0.6, "sooner than the load ends"
        hurt.assert_serves()


# Clients that leave.


def leave(hurt: Victim, **call: Any) -> None:  # as for `Victim.call`
    """Send a call and disconnect once the model has it."""
    here = hurt.await_settled()
    http = Http(hurt.server.address())
    http.connection.request("POST", f"/v2/models/{hurt.name}/infer", json.dumps(hurt.call(**call)))
    hurt.await_busy(here + 1)
    http.close()
    eventually(lambda: open_requests(hurt) == here, "it is forgotten")


def test_a_client_that_leaves_the_queue_takes_its_request_along(server: Server) -> None:
    with victim(server, "left_queue", largest=5000, **PATIENT) as hurt:
        with hurt.held() as busy:
            leave(hurt)
            leave(hurt, x=[1.0] * 5000)
        assert hurt.runs() == run_number(busy.result()[1]) + 1


def test_a_client_that_leaves_in_the_run_gets_its_memory_freed_by_the_reply_and_not_before(server: Server) -> None:
    with victim(server, "left_run", largest=50_000, **PATIENT) as hurt:
        leave(hurt, mode="hold", x=[1.0] * 50_000)
        assert server.gauge("mmsup_arena_used_bytes") > 0, "the worker may still read it"
        hurt.release()
        eventually(lambda: server.gauge("mmsup_arena_used_bytes") == 0, "the reply gave it back")
        hurt.assert_serves()


# Bounds.


@pytest.mark.alone
def test_a_full_queue_refuses_a_flood_at_once_and_nothing_grows(server: Server) -> None:
    with victim(server, "full", max_queue=3, **PATIENT) as hurt:
        with hurt.held():
            waiting = hurt.queued({}, {})
            flood = Flood(hurt)
            took = [flood.refused_after_s(size) for size in [3] * 300 + [100_000] * 30]
            flood.http.close()
        assert statistics.median(took) < REFUSAL_S
        assert [each.result()[0] for each in waiting] == [200, 200]
        hurt.assert_serves()


class Flood:
    """One client that keeps sending although it is refused."""

    def __init__(self, hurt: Victim) -> None:
        self.http = Http(hurt.server.address())
        self._path = f"/v2/models/{hurt.name}/infer"

    def refused_after_s(self, size: int) -> float:
        """Seconds until a call with `size` numbers was refused."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [size], "parameters": {"binary_data_size": 4 * size}}
        words = json.dumps({"inputs": [tensor]}).encode()
        head = {"Inference-Header-Content-Length": str(len(words))}
        began = time.monotonic()
        status, headers, told = self.http.send("POST", self._path, words + bytes(4 * size), head)
        took_s = time.monotonic() - began
        assert (status, json.loads(told)["code"]) == (503, "queue_full"), told
        assert int(headers["Retry-After"]) >= 1
        return took_s


@pytest.mark.alone
def test_bytes_that_wait_are_bounded_too_and_small_requests_go_on(server: Server) -> None:
    with victim(server, "full_of_bytes", largest=25_000, max_queue_bytes=150_000, **PATIENT) as hurt:
        with hurt.held(x=[1.0] * 25_000):
            flood = Flood(hurt)
            took = [flood.refused_after_s(25_000) for _ in range(100)]
            flood.http.close()
            small = hurt.queued({})
        assert statistics.median(took) < REFUSAL_S
        assert small[0].result()[0] == 200
        assert hurt.send(x=[1.0] * 25_000)[0] == 200


# Priorities.

CLASSES = """
dynamic_batching {
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 3 }
  priority_queue_policy {
    key: 3
    value { max_queue_size: 2 default_timeout_microseconds: 100000 timeout_action: DELAY }
  }
}
"""


def order(calls: Sequence[BackgroundCall], after: BackgroundCall) -> list[int]:
    """For each call, the number of runs between `after` and its own."""
    return [run_number(each.result()[1]) - run_number(after.result()[1]) for each in calls]


def test_classes_of_the_configuration_and_of_the_request_decide_who_is_next(server: Server) -> None:
    with victim(server, "classes", config=CLASSES, max_batch_size=1, **PATIENT) as hurt:
        with hurt.held() as first:
            priorities = (0, 3, 1, 2, 77, 1)
            calls = hurt.queued(*({"priority": each} for each in priorities))
        assert order(calls, first) == [3, 6, 1, 4, 5, 2]


def test_a_class_has_its_own_bound_and_what_it_delays_runs_last(server: Server) -> None:
    with victim(server, "policies", config=CLASSES, max_batch_size=1, **PATIENT) as hurt:
        with hurt.held() as first:
            calls = hurt.queued(*({"priority": each} for each in (3, 3, 2, 2, 2)))
            full = hurt.queued({"priority": 3}, {"priority": 2})
        for each in full:
            status, reply = each.result()
            assert (status, reply["code"]) == (503, "queue_full"), reply
        assert order(calls, first) == [4, 5, 1, 2, 3]


# Company.

PAIRS = "dynamic_batching { preferred_batch_size: [ 2 ] }\n"


def test_what_waits_shares_a_run_in_the_preferred_size_and_other_shapes_run_apart(server: Server) -> None:
    with victim(server, "pairs", config=PAIRS, max_batch_size=8, **PATIENT) as hurt:
        wide: Json = {"x": [1.0, 2.0, 3.0, 4.0, 5.0]}
        with hurt.held() as first:
            calls = hurt.queued({}, {}, {}, wide, wide, {})
        assert order(calls, first) == [1, 1, 2, 3, 3, 4]
        shapes = [each.result()[1]["outputs"][0]["shape"] for each in calls]
        assert shapes == [[1, 3]] * 3 + [[1, 5]] * 2 + [[1, 3]]


def batches(server: Server, model: str) -> tuple[dict[int, int], int]:
    """From the statistics, the runs of each batch size, and of all."""
    http = server.http()
    reply = http.json("GET", f"/v2/models/{model}/stats")[1]
    http.close()
    assert isinstance(reply, dict)
    (shown,) = reply["model_stats"]
    for each in shown["batch_stats"]:
        parts = [each[name] for name in ("compute_input", "compute_infer", "compute_output")]
        assert all(part["ns"] > 0 for part in parts)
        assert len({part["count"] for part in parts}) == 1
    return {each["batch_size"]: each["compute_infer"]["count"] for each in shown["batch_stats"]}, shown[
        "execution_count"
    ]


def test_statistics_tell_the_batch_sizes_that_ran(server: Server) -> None:
    with victim(server, "sizes", config=PAIRS, max_batch_size=8, **PATIENT) as hurt:
        before, all_before = batches(server, hurt.name)
        with hurt.held() as first:
            calls = hurt.queued({}, {}, {})
        assert order(calls, first) == [1, 1, 2]
        assert batches(server, hurt.name) == ({1: before[1] + 2, 2: 1}, all_before + 3)
    sizes, runs = batches(server, BYSTANDER)
    assert sizes == {1: runs}, "it has no batch axis: 5000 elements are one"


def test_a_batch_of_mixed_deadlines_loses_only_the_late(server: Server) -> None:
    with victim(server, "mixed", max_batch_size=8, **PATIENT) as hurt:
        with hurt.held() as first:
            calls = hurt.queued({}, {"timeout": 30_000_000})
            late = [hurt.in_background(timeout=each) for each in (100_000, 120_000)]
            assert [each.result()[0] for each in late] == [504, 504]
            calls += hurt.queued({})
        assert order(calls, first) == [1, 1, 1]


# Instances.


def test_a_slow_instance_gets_no_more_than_it_works_off(server: Server) -> None:
    with victim(server, "two", instances=2, **PATIENT) as hurt:
        with hurt.held() as slow:
            for _ in range(20):
                hurt.assert_serves()
            assert not slow.is_over, "none waited behind the slow one"
        assert slow.result()[0] == 200


def test_two_at_once_run_on_two_instances(server: Server) -> None:
    with victim(server, "side_by_side", instances=2, **PATIENT) as hurt:
        with hurt.held(), hurt.held():
            waiting = hurt.queued({}, {})
            assert not any(each.is_over for each in waiting), "both are at work"
        assert [each.result()[0] for each in waiting] == [200, 200]
