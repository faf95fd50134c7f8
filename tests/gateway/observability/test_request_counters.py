"""Each request is counted once, in the right column, in counters that outlive the process; and how they are shown."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_router import FakeRouter, metadata
from mmsup.gateway.observability import metrics, statistics
from mmsup.gateway.observability.request_counters import (
    REASONS,
    REFUSED_PREFIX,
    UNKNOWN_MODEL,
    RequestCounters,
    RequestTimer,
    error_code,
    failure_reason,
)
from mmsup.ipc.errors import CallerError, ModelError, ServerError, WorkerError
from mmsup.ipc.memory.counters import BATCH_SIZES_LIMIT, BUCKETS_S, CounterTable, make_counter_table
from mmsup.ipc.messages.data import InferReply

RESULT = InferReply(1, queue_ns=1_000_000, input_ns=2_000_000, infer_ns=3_000_000, output_ns=4_000_000)
STATUS = {
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
def tables() -> Iterator[list[CounterTable]]:
    fds = [make_counter_table(), make_counter_table()]
    yield [CounterTable(fd) for fd in fds]
    for fd in fds:
        os.close(fd)


def test_totals_are_the_sum_over_all_gateways(tables: list[CounterTable]) -> None:
    one, other = RequestCounters(tables, 0), RequestCounters(tables, 1)
    one.version_counters("m", "1").record_success(RESULT, 2, 10_000_000)
    other.version_counters("m", "1").record_success(RESULT, 3, 20_000_000)
    for counters in (one, other):
        row = counters.totals()["m", "1"]
        assert (row["success"], row["inference_count"], row["request_ns"]) == (2, 5, 30_000_000)


def test_the_totals_of_one_model_are_those_among_all(tables: list[CounterTable]) -> None:
    one, other = RequestCounters(tables, 0), RequestCounters(tables, 1)
    for name, version in (("m", "1"), ("m", "2"), ("n", "1")):
        one.version_counters(name, version).record_success(RESULT, 2, 10_000_000)
    other.version_counters("m", "2").record_success(RESULT, 3, 20_000_000)
    expected = {key: row for key, row in one.totals().items() if key[0] == "m"}
    assert dict(one.rows("m")) == expected
    assert expected.keys() == {("m", "1"), ("m", "2")}
    assert expected["m", "2"]["success"] == 2


def test_a_new_gateway_continues_the_counters_of_a_dead_one(tables: list[CounterTable]) -> None:
    RequestCounters(tables, 0).version_counters("m", "1").record_success(RESULT, 1, 1)
    again = RequestCounters(tables, 0)
    again.version_counters("m", "1").record_success(RESULT, 1, 1)
    assert again.totals()["m", "1"]["success"] == 2


@dataclass
class KnownOne:
    """A known request in flight that counts as so many inferences."""

    started_ns: int
    inferences: int

    @property
    def known(self) -> KnownOne:
        return self


def test_known_requests_are_counted_as_if_one_by_one(tables: list[CounterTable]) -> None:
    rng, together, single = random.Random(5), RequestCounters(tables, 0), RequestCounters(tables, 1)
    for _ in range(300):
        replies: list[tuple[KnownOne, tuple[int, int, int, int, int, int], None]] = []
        for _ in range(rng.randint(1, 8)):
            size = rng.choice((1, 1, 2, 3))
            queue, gather, infer, copy = [rng.randrange(rng.choice((1000, 1 << 24))) for _ in range(4)]
            known = KnownOne(10**10 - rng.randrange(1 << 25), rng.randint(1, 3))
            replies.append((known, (queue, gather, infer, copy, size, rng.choice((1, size, 7))), None))
        together.version_counters("a", "1").record_known(replies, 10**10)
        for known, fields, _ in replies:
            reply = InferReply(1, "", "", b"w", (), 0, *fields)
            single.version_counters("b", "1").record_success(reply, known.inferences, 10**10 - known.started_ns)
    totals = together.totals()
    known_row, row = totals["a", "1"], totals["b", "1"]
    assert known_row.pop("known") == known_row["success"] > 300
    assert row.pop("known") == 0
    for each in (known_row, row):
        assert each.pop("last_inference_ms")
    assert known_row == row
    assert together.batch_totals()["a", "1"] == together.batch_totals()["b", "1"]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 10, 49])
def test_a_batch_is_one_execution_however_many_requests_it_had(tables: list[CounterTable], batch: int) -> None:
    counters = RequestCounters(tables, 0)
    for _ in range(batch * 20):
        counters.version_counters("m", "1").record_success(replace(RESULT, batch=batch), 1, 1)
    assert counters.totals()["m", "1"]["exec_count"] == 20


def executions(counters: RequestCounters) -> dict[int, int]:
    """Of model m, by the size of the batch."""
    return {size: row["exec_count"] for size, row in counters.batch_totals()["m", "1"].items() if row["exec_count"]}


def run(counters: RequestCounters, requests: int, rows: int) -> None:
    """A run of so many requests, of so many rows in all, as it is counted."""
    for _ in range(requests):
        counters.version_counters("m", "1").record_success(replace(RESULT, batch=requests, rows=rows), 1, 10_000_000)


def test_a_run_is_counted_once_under_the_rows_that_it_had(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    for requests, rows in ((1, 1), (3, 7), (1, 7), (3, 8), (2, 8)):
        run(counters, requests, rows)
    assert executions(counters) == {1: 1, 7: 2, 8: 2}
    assert counters.batch_totals()["m", "1"][7]["compute_infer_ns"] == 2 * RESULT.infer_ns
    assert sum(executions(counters).values()) == counters.totals()["m", "1"]["exec_count"]


def test_a_run_whose_requests_came_by_two_gateways_is_counted_under_its_own_size(tables: list[CounterTable]) -> None:
    one, other = RequestCounters(tables, 0), RequestCounters(tables, 1)
    for _ in range(2):
        for counters in (one, other):
            for size in (2, 4):
                counters.version_counters("m", "1").record_success(replace(RESULT, batch=2, rows=size), 1, 10_000_000)
    assert executions(one) == executions(other) == {2: 2, 4: 2}


def test_sizes_of_batches_outlive_the_gateway_that_counted_them(tables: list[CounterTable]) -> None:
    run(RequestCounters(tables, 0), 2, 5)
    again = RequestCounters(tables, 0)
    run(again, 2, 5)
    run(again, 1, 3)
    assert executions(again) == {5: 2, 3: 1}


def test_sizes_beyond_the_limit_are_left_out_and_still_are_executions(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    for size in range(1, BATCH_SIZES_LIMIT + 4):
        run(counters, 2, size)
        run(counters, 2, size)
    assert executions(counters) == dict.fromkeys(range(1, BATCH_SIZES_LIMIT + 1), 2)
    assert counters.totals()["m", "1"]["exec_count"] == 2 * (BATCH_SIZES_LIMIT + 3)


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
def test_a_failure_is_counted_by_its_cause(tables: list[CounterTable], error: BaseException, column: str) -> None:
    counters = RequestCounters(tables, 0)
    RequestTimer(counters, "m", "1").fail(error)
    row = counters.totals()["m", "1"]
    assert row[column] == 1
    assert sum(row[f"fail_{each}"] for each in REASONS) == 1
    assert row["success"] == row["request_ns"] == 0


def test_a_malformed_request_is_no_inference(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    RequestTimer(counters, "m", "1").fail(CallerError("bad_request", "x"))
    assert ("m", "1") not in counters.totals()
    assert counters.totals()["m", "!bad_request"]["refused"] == 1


def test_unknown_model_names_take_no_rows(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    for number in range(50):
        RequestTimer(counters, f"unknown{number}", "").fail(CallerError("unknown_model", "x"))
    assert set(counters.totals()) == {("_unknown", "!unknown_model")}


def test_names_that_clients_make_up_take_no_rows_whatever_is_wrong(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    counters.models = {"m"}
    for name in ("x" * 300, "a\0b", "other"):
        RequestTimer(counters, name, "1").fail(CallerError("bad_request", "x"))
        RequestTimer(counters, name, "1").fail(asyncio.CancelledError())
    RequestTimer(counters, "m", "1").fail(asyncio.CancelledError())
    assert set(counters.totals()) == {("_unknown", "!bad_request"), ("_unknown", "!cancelled"), ("m", "1")}


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ServerError("queue_full", "x"), RuntimeError("x")])
def test_a_request_that_ends_before_it_names_a_model_hides_no_row_behind_it(
    tables: list[CounterTable], error: BaseException
) -> None:
    counters, other = RequestCounters(tables, 0), RequestCounters(tables, 1)
    RequestTimer(counters, "", "").fail(error)
    counters.record_failure("m", "1", "internal", 1)
    assert other.totals()["m", "1"]["fail_OTHER"] == 1
    assert other.totals()[UNKNOWN_MODEL, REFUSED_PREFIX + error_code(error)]["refused"] == 1


def test_a_request_is_counted_once(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    timer = RequestTimer(counters, "m", "")
    timer.version = "1"
    timer.finish(RESULT, 1)
    timer.fail(ServerError("cancelled", "left while the reply was sent"))
    row = counters.totals()["m", "1"]
    assert (row["success"], row["fail_CANCELED"]) == (1, 0)


def test_every_reason_is_one_of_triton() -> None:
    assert {failure_reason(code) for code in ("cancelled", "queue_full", "worker_oom", "draining")} == set(REASONS)


def test_open_requests_are_shown_until_they_are_closed_even_if_a_gateway_died_meanwhile(
    tables: list[CounterTable],
) -> None:
    RequestCounters(tables, 0).set_current({"m": 3}, 10, 20)
    RequestCounters(tables, 1).set_current({"m": 1}, 1, 2)
    shown = page(tables)
    assert shown["mmsup_requests_open", (("model", "m"),)] == 4
    assert (shown["mmsup_arena_used_bytes", ()], shown["mmsup_arena_held_bytes", ()]) == (11, 22)
    RequestCounters(tables, 0).set_current({}, 0, 0)
    assert page(tables)["mmsup_requests_open", (("model", "m"),)] == 1


def test_requests_that_wait_are_shown_by_version_until_they_wait_no_more(tables: list[CounterTable]) -> None:
    RequestCounters(tables, 0).set_pending({("m", "1"): 3, ("m", "2"): 1})
    RequestCounters(tables, 1).set_pending({("m", "1"): 2})
    text = page_text(RequestCounters(tables, 0), STATUS)
    assert "# TYPE nv_inference_pending_request_count gauge" in text
    assert 'nv_inference_pending_request_count{model="m",version="1"} 5.0' in text.splitlines()
    RequestCounters(tables, 0).set_pending({("m", "2"): 1})
    shown = page(tables)
    pending = "nv_inference_pending_request_count"
    assert [shown[pending, (("model", "m"), ("version", each))] for each in "12"] == [2, 1]


# The metrics and statistics.


def page_text(counters: RequestCounters, status: metrics.StatusJson) -> str:
    return b"".join(metrics.metrics_pieces(counters.totals(), status)).decode()


def page(
    tables: list[CounterTable], status: metrics.StatusJson = STATUS
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = page_text(RequestCounters(tables, 0), status)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(each.name, tuple(sorted(each.labels.items()))): each.value for each in samples}


def test_the_page_is_valid_when_nothing_was_ever_counted(tables: list[CounterTable]) -> None:
    shown = page(tables, {})
    assert shown
    assert not any(shown.values())


def test_triton_counters_have_their_names_units_and_type(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    counters.version_counters("m", "1").record_success(RESULT, 2, 10_000_000)
    counters.record_failure("m", "1", "worker_oom", 5_000_000)
    text = page_text(counters, {})
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


def test_the_histogram_is_cumulative_and_ends_in_the_count(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    for ns in (1, 500_000, 500_001, 20_000_000_000):
        counters.version_counters("m", "1").record_success(RESULT, 1, ns)
    shown = page(tables)
    base = "mmsup_request_duration_seconds"
    buckets = [
        shown[f"{base}_bucket", (("le", edge), ("model", "m"), ("version", "1"))] for edge in map(str, BUCKETS_S)
    ]
    assert buckets[:2] == [2, 3]
    assert buckets == sorted(buckets)
    assert shown[f"{base}_count", (("model", "m"), ("version", "1"))] == 4


def test_refusals_memory_restarts_and_states_are_shown(tables: list[CounterTable]) -> None:
    RequestCounters(tables, 0).record_refusal("m", "bad_request")
    shown = page(tables)
    worker = (("instance", "4"), ("model", "m"), ("version", "1"))
    assert shown["mmsup_requests_refused_total", (("code", "bad_request"), ("model", "m"))] == 1
    assert shown["mmsup_worker_restarts_total", worker] == 3
    assert shown["mmsup_worker_memory_bytes", worker] == 1000
    assert shown["mmsup_worker_memory_cap_bytes", worker] == 2000
    assert shown["mmsup_model_state", (("model", "m"), ("state", "ready"))] == 1
    assert shown["mmsup_model_state", (("model", "m"), ("state", "failed"))] == 0
    assert shown["mmsup_brain_generation", ()] == 2


def test_every_metric_has_a_description(tables: list[CounterTable]) -> None:
    text = page_text(RequestCounters(tables, 0), STATUS)
    sentences = [line.split(" ", 3)[3] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(sentences) >= 15
    assert all(each.endswith(".") for each in sentences)


def test_statistics_have_every_version_and_count_in_nanoseconds(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    counters.version_counters("m", "1").record_success(RESULT, 2, 10_000_000)
    counters.record_failure("m", "1", "cancelled", 7)
    router = FakeRouter()
    router.threads.shutdown()
    for name in ("m", "idle"):
        router.serve(name, metadata(("X", "FP32", (1,))))
    routes = [router.routes.model(name) for name in ("m", "idle")]
    batches = counters.batch_totals()
    busy, idle = list(statistics.model_statistics(routes, counters.totals(), batches, STATUS))
    assert (busy["inference_count"], busy["execution_count"]) == (2, 1)
    assert busy["inference_stats"]["success"] == {"count": 1, "ns": 10_000_000}
    assert busy["inference_stats"]["fail"] == {"count": 1, "ns": 7}
    assert busy["inference_stats"]["queue"] == {"count": 1, "ns": 1_000_000}
    assert busy["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 1000}]
    assert busy["last_inference"] > 1_600_000_000_000
    assert (idle["name"], idle["inference_count"], idle["memory_usage"]) == ("idle", 0, [])
    assert list(statistics.model_statistics(routes, counters.totals(), batches, {}, "9")) == []
    assert idle["batch_stats"] == []
    assert busy["batch_stats"] == [
        {
            "batch_size": 1,
            "compute_input": {"count": 1, "ns": 2_000_000},
            "compute_infer": {"count": 1, "ns": 3_000_000},
            "compute_output": {"count": 1, "ns": 4_000_000},
        }
    ]


def test_of_a_gpu_only_present_values_are_shown(tables: list[CounterTable]) -> None:
    load = {"utilization": 0.25, "power_watts": 300.5, "power_limit_watts": 700, "energy_joules": 12}
    seen = {"memory_total_bytes": 80, "memory_used_bytes": 30, "age_s": 1.5, **load}
    silent = {"memory_total_bytes": None, "memory_used_bytes": None, "age_s": 9.0, **dict.fromkeys(load)}
    status = {"devices": [{"uuid": "a", "set_aside": True, **seen}, {"uuid": "b", "set_aside": False, **silent}]}
    one, other = (("gpu_uuid", "a"),), (("gpu_uuid", "b"),)
    shown = page(tables, status)
    assert (shown["nv_gpu_memory_total_bytes", one], shown["nv_gpu_memory_used_bytes", one]) == (80, 30)
    names = ("nv_gpu_utilization", "nv_gpu_power_usage", "nv_gpu_power_limit")
    assert [shown[name, one] for name in names] == [0.25, 300.5, 700]
    lines = page_text(RequestCounters(tables, 0), status).splitlines()
    assert "# TYPE nv_energy_consumption counter" in lines
    assert 'nv_energy_consumption{gpu_uuid="a"} 12.0' in lines
    assert (shown["mmsup_device_set_aside", one], shown["mmsup_device_set_aside", other]) == (1, 0)
    assert shown["mmsup_device_reading_age_seconds", other] == 9.0
    assert ("nv_gpu_memory_used_bytes", other) not in shown
    old = page(tables, {**status, "old": True})
    assert old["mmsup_device_set_aside", one] == 1
    assert not [each for each in old if each[0].startswith("nv_gpu") or "age" in each[0]]


def test_times_that_a_worker_makes_up_are_not_counted(tables: list[CounterTable]) -> None:
    counters = RequestCounters(tables, 0)
    timer = RequestTimer(counters, "m", "1")
    timer.finish(InferReply(1, queue_ns=1 << 49, infer_ns=1 << 49), 1)
    row = counters.totals()["m", "1"]
    assert (row["success"], row["queue_ns"], row["compute_infer_ns"]) == (1, 0, 0)
    assert counters.batch_totals()["m", "1"][1]["compute_infer_ns"] == 0
