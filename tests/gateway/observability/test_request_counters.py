"""Each request is counted once, in the right column, in numbers that outlive this process; and the pages they make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway_double import FakeRouter, metadata
from mmsup.gateway.observability import metrics, statistics
from mmsup.gateway.observability.request_counters import REASONS, RequestCounters, RequestTimer, failure_reason
from mmsup.gateway.protocol.inference_job import InferenceResult
from mmsup.ipc.errors import CallerError, ModelError, ServerError, WorkerError
from mmsup.ipc.memory.counters import BUCKETS_S, CounterTable, make_counter_table

OUTCOME = InferenceResult([], 1_000_000, 2_000_000, 3_000_000, 4_000_000, 1)
FACTS = {
    "brain": {"pid": 7, "generation": 2},
    "models": [
        {
            "name": "m",
            "state": "ready",
            "instances": [
                {"id": 4, "version": "1", "restarts": 3, "memory_bytes": 1000, "memory_cap_bytes": 2000},
                {"id": 5, "version": "1", "restarts": 0, "memory_bytes": None},
            ],
        }
    ],
}


@pytest.fixture
def tallies() -> Iterator[list[CounterTable]]:
    fds = [make_counter_table(), make_counter_table()]
    yield [CounterTable(fd) for fd in fds]
    for fd in fds:
        os.close(fd)


def test_totals_are_the_sum_over_all_gateways(tallies: list[CounterTable]) -> None:
    one, other = RequestCounters(tallies, 0), RequestCounters(tallies, 1)
    one.version_counters("m", "1").record_success(OUTCOME, 2, 10_000_000)
    other.version_counters("m", "1").record_success(OUTCOME, 3, 20_000_000)
    for counting in (one, other):
        row = counting.totals()["m", "1"]
        assert (row["success"], row["inference_count"], row["request_ns"]) == (2, 5, 30_000_000)


def test_a_new_gateway_goes_on_where_the_old_one_died(tallies: list[CounterTable]) -> None:
    RequestCounters(tallies, 0).version_counters("m", "1").record_success(OUTCOME, 1, 1)
    again = RequestCounters(tallies, 0)
    again.version_counters("m", "1").record_success(OUTCOME, 1, 1)
    assert again.totals()["m", "1"]["success"] == 2


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 49])
def test_a_batch_is_one_execution_however_many_requests_it_had(tallies: list[CounterTable], batch: int) -> None:
    counting = RequestCounters(tallies, 0)
    for _ in range(batch * 20):
        counting.version_counters("m", "1").record_success(replace(OUTCOME, batch=batch), 1, 1)
    assert counting.totals()["m", "1"]["exec_count"] == 20


@pytest.mark.parametrize(
    ("error", "column"),
    [
        (WorkerError("worker_crashed", "x"), "fail_BACKEND"),
        (ModelError("inference_failed", "x"), "fail_BACKEND"),
        (ServerError("queue_full", "x"), "fail_REJECTED"),
        (ServerError("cancelled", "x"), "fail_CANCELED"),
        (WorkerError("model_loading", "x"), "fail_OTHER"),
        (ZeroDivisionError(), "fail_OTHER"),
        (KeyboardInterrupt(), "fail_CANCELED"),
    ],
)
def test_a_failure_is_counted_by_whose_it_was(tallies: list[CounterTable], error: BaseException, column: str) -> None:
    counting = RequestCounters(tallies, 0)
    RequestTimer(counting, "m", "1").fail(error)
    row = counting.totals()["m", "1"]
    assert row[column] == 1
    assert sum(row[f"fail_{each}"] for each in REASONS) == 1
    assert row["success"] == row["request_ns"] == 0


def test_a_malformed_request_is_no_inference(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    RequestTimer(counting, "m", "1").fail(CallerError("bad_request", "x"))
    assert ("m", "1") not in counting.totals()
    assert counting.totals()["m", "!bad_request"]["refused"] == 1


def test_names_that_clients_make_up_take_no_rows(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    for number in range(50):
        RequestTimer(counting, f"guess{number}", "").fail(CallerError("unknown_model", "x"))
    assert set(counting.totals()) == {("_unknown", "!unknown_model")}


def test_a_request_is_counted_once(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    ticket = RequestTimer(counting, "m", "")
    ticket.set_version("1")
    ticket.finish(OUTCOME, 1)
    ticket.fail(ServerError("cancelled", "left while the reply was sent"))
    row = counting.totals()["m", "1"]
    assert (row["success"], row["fail_CANCELED"]) == (1, 0)


def test_every_reason_is_one_that_dashboards_know() -> None:
    assert {failure_reason(code) for code in ("cancelled", "queue_full", "worker_oom", "draining")} == set(REASONS)


def test_what_is_open_is_shown_until_it_is_not_also_when_a_gateway_died_meanwhile(tallies: list[CounterTable]) -> None:
    RequestCounters(tallies, 0).set_current({"m": 3}, 10, 20)
    RequestCounters(tallies, 1).set_current({"m": 1}, 1, 2)
    shown = page(tallies)
    assert shown["mmsup_requests_open", (("model", "m"),)] == 4
    assert (shown["mmsup_arena_used_bytes", ()], shown["mmsup_arena_held_bytes", ()]) == (11, 22)
    RequestCounters(tallies, 0).set_current({}, 0, 0)
    assert page(tallies)["mmsup_requests_open", (("model", "m"),)] == 1


# The pages.


def page(
    tallies: list[CounterTable], facts: metrics.StatusJson = FACTS
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.metrics_text(RequestCounters(tallies, 0).totals(), facts).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}


def test_the_page_is_valid_when_nothing_was_ever_counted(tallies: list[CounterTable]) -> None:
    shown = page(tallies, {})
    assert shown
    assert not any(shown.values())


def test_familiar_counters_have_their_names_their_units_and_their_type(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    counting.version_counters("m", "1").record_success(OUTCOME, 2, 10_000_000)
    counting.record_failure("m", "1", "worker_oom", 5_000_000)
    text = metrics.metrics_text(counting.totals(), {}).decode()
    labels = '{model="m",version="1"}'
    for line in (
        f"nv_inference_request_success{labels} 1.0",
        f"nv_inference_count{labels} 2.0",
        f"nv_inference_request_duration_us{labels} 10000.0",
        f"nv_inference_queue_duration_us{labels} 1000.0",
        f"nv_inference_compute_output_duration_us{labels} 4000.0",
        'nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 1.0',
    ):
        assert line in text.splitlines()
    assert "# TYPE nv_inference_request_success counter\n" in text
    assert "nv_inference_count_total" not in text


def test_the_histogram_is_cumulative_and_ends_in_the_count(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    for ns in (1, 500_000, 500_001, 20_000_000_000):
        counting.version_counters("m", "1").record_success(OUTCOME, 1, ns)
    shown = page(tallies)
    base = "mmsup_request_duration_seconds"
    buckets = [
        shown[f"{base}_bucket", (("le", edge), ("model", "m"), ("version", "1"))] for edge in map(str, BUCKETS_S)
    ]
    assert buckets[:2] == [2, 3]
    assert buckets == sorted(buckets)
    assert shown[f"{base}_count", (("model", "m"), ("version", "1"))] == 4


def test_refusals_memory_restarts_and_states_are_shown(tallies: list[CounterTable]) -> None:
    RequestCounters(tallies, 0).record_refusal("m", "bad_request")
    shown = page(tallies)
    worker = (("instance", "4"), ("model", "m"), ("version", "1"))
    assert shown["mmsup_requests_refused_total", (("code", "bad_request"), ("model", "m"))] == 1
    assert shown["mmsup_worker_restarts_total", worker] == 3
    assert shown["mmsup_worker_memory_bytes", worker] == 1000
    assert shown["mmsup_worker_memory_cap_bytes", worker] == 2000
    assert shown["mmsup_model_state", (("model", "m"), ("state", "ready"))] == 1
    assert shown["mmsup_model_state", (("model", "m"), ("state", "failed"))] == 0
    assert shown["mmsup_brain_generation", ()] == 2


def test_every_metric_has_a_sentence(tallies: list[CounterTable]) -> None:
    text = metrics.metrics_text(RequestCounters(tallies, 0).totals(), FACTS).decode()
    sentences = [line.split(" ", 3)[3] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(sentences) >= 15
    assert all(each.endswith(".") for each in sentences)


def test_statistics_have_every_version_and_count_in_nanoseconds(tallies: list[CounterTable]) -> None:
    counting = RequestCounters(tallies, 0)
    counting.version_counters("m", "1").record_success(OUTCOME, 2, 10_000_000)
    counting.record_failure("m", "1", "cancelled", 7)
    backend = FakeRouter()
    backend.threads.shutdown()
    for name in ("m", "idle"):
        backend.serve(name, metadata(("X", "FP32", (1,))))
    routes = [backend.routes.model(name) for name in ("m", "idle")]
    busy, idle = statistics.model_statistics(routes, counting.totals(), FACTS)["model_stats"]
    assert (busy["inference_count"], busy["execution_count"]) == (2, 1)
    assert busy["inference_stats"]["success"] == {"count": 1, "ns": 10_000_000}
    assert busy["inference_stats"]["fail"] == {"count": 1, "ns": 7}
    assert busy["inference_stats"]["queue"] == {"count": 1, "ns": 1_000_000}
    assert busy["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 1000}]
    assert busy["last_inference"] > 1_600_000_000_000
    assert (idle["name"], idle["inference_count"], idle["memory_usage"]) == ("idle", 0, [])
    assert statistics.model_statistics(routes, counting.totals(), {}, "9")["model_stats"] == []


def test_of_a_gpu_nothing_is_shown_that_is_not_known_now(tallies: list[CounterTable]) -> None:
    seen = {"memory_total_bytes": 80, "memory_used_bytes": 30, "age_s": 1.5}
    silent = {"memory_total_bytes": None, "memory_used_bytes": None, "age_s": 9.0}
    facts = {"devices": [{"uuid": "a", "set_aside": True, **seen}, {"uuid": "b", "set_aside": False, **silent}]}
    one, other = (("gpu_uuid", "a"),), (("gpu_uuid", "b"),)
    shown = page(tallies, facts)
    assert (shown["nv_gpu_memory_total_bytes", one], shown["nv_gpu_memory_used_bytes", one]) == (80, 30)
    assert (shown["mmsup_device_set_aside", one], shown["mmsup_device_set_aside", other]) == (1, 0)
    assert shown["mmsup_device_reading_age_seconds", other] == 9.0
    assert ("nv_gpu_memory_used_bytes", other) not in shown
    old = page(tallies, {**facts, "old": True})
    assert old["mmsup_device_set_aside", one] == 1
    assert not [each for each in old if each[0].startswith("nv_gpu") or "age" in each[0]]
