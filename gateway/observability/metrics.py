"""The metrics page: every metric with its unit in its name and one sentence of meaning. Home of prometheus-client.

The `nv_*` counters have the names that dashboards for Triton use. prometheus-client would append `_total` to them, so
they are built as gauges and declared as counters in the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from mmsup.gateway.observability.controller_status import STALE_KEY
from mmsup.gateway.observability.request_counters import COLD, CURRENT, GATEWAY_ROW, REASONS, REFUSED_PREFIX, Totals
from mmsup.ipc.memory.counters import BUCKETS_S

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
STATES: Final = (
    "absent",
    "starting",
    "loading",
    "warming",
    "ready",
    "offloading",
    "offloaded",
    "restoring",
    "draining",
    "stopping",
    "stopped",
    "failed",
    "backoff",
    "quarantined",
    "asleep",
)
_MODEL: Final = ("model", "version")
_WORKER: Final = ("model", "version", "instance")
_GPU: Final = ("gpu_uuid",)
_NV_METRICS: Final = {
    "nv_inference_request_success": ("success", 1, "Inferences answered with a result."),
    "nv_inference_count": ("inference_count", 1, "Inferences done, a batch of n counting n."),
    "nv_inference_exec_count": ("exec_count", 1, "Batches executed."),
    "nv_inference_request_duration_us": ("request_ns", 1000, "Time of inferences from head to reply, microseconds."),
    "nv_inference_queue_duration_us": ("queue_ns", 1000, "Time that inferences waited in a queue, microseconds."),
    "nv_inference_compute_input_duration_us": ("compute_input_ns", 1000, "Time to gather inputs, microseconds."),
    "nv_inference_compute_infer_duration_us": ("compute_infer_ns", 1000, "Time in the models, microseconds."),
    "nv_inference_compute_output_duration_us": ("compute_output_ns", 1000, "Time to copy outputs, microseconds."),
}
_WHEN: Final = ("load_peak", "settled", "serving_peak", "offloaded")
_FAILURES: Final = "nv_inference_request_failure"

StatusJson = Mapping[str, Any]  # JSON of the controller's status command


def metrics_text(totals: Totals, status: StatusJson) -> bytes:
    triton = _text(_nv_metrics(totals))
    for name in (*_NV_METRICS, _FAILURES):
        triton = triton.replace(f"# TYPE {name} gauge", f"# TYPE {name} counter")
    return (triton + _text(_own_metrics(totals, status))).encode()


class _MetricList(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _text(metrics: Iterable[Metric]) -> str:
    return generate_latest(_MetricList(metrics)).decode()


def _rows(totals: Totals) -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
    """The rows of model versions, without those of refusals and of current values."""
    return ((key, row) for key, row in sorted(totals.items()) if not key[1].startswith((REFUSED_PREFIX, CURRENT)))


def _nv_metrics(totals: Totals) -> Iterator[Metric]:
    for name, (column, divisor, meaning) in _NV_METRICS.items():
        family = GaugeMetricFamily(name, meaning, labels=_MODEL)
        for key, row in _rows(totals):
            family.add_metric(key, row[column] // divisor)
        yield family
    failures = GaugeMetricFamily(_FAILURES, "Inferences that failed, by reason.", labels=(*_MODEL, "reason"))
    for key, row in _rows(totals):
        for reason in REASONS:
            failures.add_metric((*key, reason), row[f"fail_{reason}"])
    yield failures


def _own_metrics(totals: Totals, status: StatusJson) -> Iterator[Metric]:
    yield _duration_histogram(totals)
    meaning = "Inferences of nv_inference_request_success that were served as known requests (docs/fast-path.md)."
    known = CounterMetricFamily("mmsup_known_requests", meaning, labels=_MODEL)
    for key, row in _rows(totals):
        known.add_metric(key, row["known"])
    yield known
    refused = CounterMetricFamily(
        "mmsup_requests_refused", "Requests that were refused as invalid, by error code.", labels=("model", "code")
    )
    for (model, version), row in sorted(totals.items()):
        if version.startswith(REFUSED_PREFIX):
            refused.add_metric((model, version.removeprefix(REFUSED_PREFIX)), row["refused"])
    yield refused
    yield from _current_metrics(totals)
    yield from _cold_metrics(totals)
    yield from _controller_metrics(status)


def _current_metrics(totals: Totals) -> Iterator[Metric]:
    opened = GaugeMetricFamily("mmsup_requests_open", "Requests admitted and not yet answered.", labels=("model",))
    for (model, version), row in sorted(totals.items()):
        if version == CURRENT and model != GATEWAY_ROW:
            opened.add_metric((model,), row["open"])
    yield opened
    gateway = totals.get((GATEWAY_ROW, CURRENT), {})
    for name, meaning in (
        ("arena_used_bytes", "Memory shared with workers that requests and results use."),
        ("arena_held_bytes", "Memory shared with workers that gateways hold, used or not."),
        ("front_fallback", "Gateways whose fast path failed its self-test, so that aiohttp serves all requests."),
    ):
        yield GaugeMetricFamily(f"mmsup_{name}", meaning, value=gateway.get(name, 0))


def _cold_metrics(totals: Totals) -> Iterator[Metric]:
    labels = ("model",)
    starts = CounterMetricFamily("mmsup_cold_starts", "Loads from sleep that requests have asked for.", labels=labels)
    waiting = GaugeMetricFamily("mmsup_cold_requests_waiting", "Requests that wait for such loads.", labels=labels)
    waited = HistogramMetricFamily(
        "mmsup_cold_start_seconds", "Time that requests have waited for such loads, failed ones too.", labels=labels
    )
    for (model, version), row in sorted(totals.items()):
        if version == COLD:
            starts.add_metric((model,), row["success"])
            waiting.add_metric((model,), row["open"])
            waited.add_metric((model,), _buckets(row), row["request_ns"] / 1e9)
    yield from (starts, waiting, waited)


def _duration_histogram(totals: Totals) -> Metric:
    family = HistogramMetricFamily(
        "mmsup_request_duration_seconds", "Time of inferences from head to reply, failed ones too.", labels=_MODEL
    )
    for key, row in _rows(totals):
        family.add_metric(key, _buckets(row), (row["request_ns"] + row["fail_ns"]) / 1e9)
    return family


def _buckets(row: Mapping[str, int]) -> list[tuple[str, int]]:
    edges = [*map(str, BUCKETS_S), "+Inf"]
    counts = itertools.accumulate(row[f"bucket_{index}"] for index in range(len(edges)))
    return list(zip(edges, counts, strict=True))


def _controller_metrics(status: StatusJson) -> Iterator[Metric]:
    state = GaugeMetricFamily("mmsup_model_state", "1 for the state that a model is in.", labels=("model", "state"))
    restarts = CounterMetricFamily("mmsup_worker_restarts", "Times that a worker was started again.", labels=_WORKER)
    memory = GaugeMetricFamily("mmsup_worker_memory_bytes", "Host memory that a worker holds.", labels=_WORKER)
    stuck = GaugeMetricFamily(
        "mmsup_workers_quarantined", "Workers that SIGKILL does not stop; alert on any.", labels=("model",)
    )
    cap = GaugeMetricFamily("mmsup_worker_memory_cap_bytes", "Host memory that a worker may hold.", labels=_WORKER)
    for model in status.get("models", ()):
        name = str(model.get("name", ""))
        for each in STATES:
            state.add_metric((name, each), float(model.get("state") == each))
        workers = model.get("instances", ())
        stuck.add_metric((name,), sum(each.get("state") == "quarantined" for each in workers))
        for each in workers:
            labels = (name, str(each.get("version", "")), str(each.get("id", "")))
            if not status.get(
                STALE_KEY
            ):  # another gateway may have shown more: a counter must not fall, but may be missing
                restarts.add_metric(labels, each.get("restarts") or 0)
            if each.get("memory_bytes") is not None:
                memory.add_metric(labels, each["memory_bytes"])
            if each.get("memory_cap_bytes") is not None:
                cap.add_metric(labels, each["memory_cap_bytes"])
    yield from (state, restarts, stuck, memory, cap)
    yield from _capacity_metrics(status)
    yield from _gpu_metrics(status)
    meaning = "How many controllers have run, the present one included."
    yield GaugeMetricFamily("mmsup_brain_generation", meaning, value=status.get("brain", {}).get("generation"))


def _capacity_metrics(status: StatusJson) -> Iterator[Metric]:
    """What models were measured to need, and the budgets that their workers share."""
    meaning = "Memory that a worker of a model was measured to hold, of the host and of its GPU (docs/memory.md)."
    footprint = GaugeMetricFamily("mmsup_model_footprint_bytes", meaning, labels=(*_MODEL, "device", "memory", "when"))
    load = GaugeMetricFamily("mmsup_model_load_seconds", "How long the last load of a model took.", labels=_MODEL)
    meaning = "How long its last way back from host memory took."
    restore = GaugeMetricFamily("mmsup_model_restore_seconds", meaning, labels=_MODEL)
    for model in status.get("models", ()):
        for each in model.get("footprints", ()):
            labels = (str(model.get("name", "")), str(each.get("version", "")))
            load.add_metric(labels, each.get("load_s") or 0)
            if each.get("restore_s"):
                restore.add_metric(labels, each["restore_s"])
            for (memory, prefix), when in itertools.product((("host", ""), ("gpu", "gpu_")), _WHEN):
                if value := each.get(f"{prefix}{when}_bytes"):
                    footprint.add_metric((*labels, str(each.get("device", "")), memory, when), value)
    budget = GaugeMetricFamily("mmsup_memory_budget_bytes", "What all workers together may hold.", labels=("memory",))
    in_use = GaugeMetricFamily(
        "mmsup_memory_in_use_bytes", "What they hold, or are expected to while they load.", labels=("memory",)
    )
    for each in status.get("memory", {}).get("pools", ()):
        for member, family in (("budget_bytes", budget), ("in_use_bytes", in_use)):
            family.add_metric((str(each.get("memory", "")),), each.get(member) or 0)
    evictions = CounterMetricFamily(
        "mmsup_evictions", "Models put to sleep because their memory was needed.", labels=("reason",)
    )
    if not status.get(STALE_KEY):
        for reason, count in status.get("memory", {}).get("evictions", {}).items():
            evictions.add_metric((reason,), count)
    yield from (footprint, load, restore, budget, in_use, evictions)


def _gpu_metrics(status: StatusJson) -> Iterator[Metric]:
    """What NVML does not report now has no value, rather than its last one."""
    cordoned = GaugeMetricFamily(
        "mmsup_device_set_aside", "1 where no new worker is placed on a GPU; alert on any.", labels=_GPU
    )
    age = GaugeMetricFamily(
        "mmsup_device_reading_age_seconds", "Age of the last values that NVML reported.", labels=_GPU
    )
    total = GaugeMetricFamily("nv_gpu_memory_total_bytes", "Memory of a GPU.", labels=_GPU)
    used = GaugeMetricFamily("nv_gpu_memory_used_bytes", "Memory of a GPU in use by any process.", labels=_GPU)
    members = (("age_s", age), ("memory_total_bytes", total), ("memory_used_bytes", used))
    for each in status.get("devices", ()):
        label = (str(each.get("uuid", "")),)
        cordoned.add_metric(label, float(bool(each.get("set_aside"))))
        for member, family in members:
            if each.get(member) is not None and not status.get(STALE_KEY):
                family.add_metric(label, each[member])
    yield from (cordoned, age, total, used)
