"""The metrics page: every metric with its unit in its name and one sentence of meaning. Home of prometheus-client.

The page is made in pieces (slices.py): with many models it takes some hundred milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mmsup.gateway.observability.controller_status import STALE_KEY
from mmsup.gateway.observability.host_use import HostUse
from mmsup.gateway.observability.request_counters import COLD, CURRENT, GATEWAY_ROW, REASONS, REFUSED_PREFIX, Totals
from mmsup.gateway.observability.response_counters import first_response_version
from mmsup.ipc.memory.counters import BUCKETS_S

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
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
_NV_METRICS: Final = {
    "nv_inference_request_success": ("success", 1, "Inferences answered with a result."),
    "nv_inference_count": ("inference_count", 1, "Inferences done, a batch of n counting n."),
    "nv_inference_exec_count": ("exec_count", 1, "Batches executed."),
    "nv_inference_request_duration_us": ("request_ns", 1000, "Time of inferences from head to reply, microseconds."),
    "nv_inference_queue_duration_us": ("queue_ns", 1000, "Time that inferences waited in a queue, microseconds."),
    "nv_inference_compute_input_duration_us": ("compute_input_ns", 1000, "Time to gather inputs, microseconds."),
    "nv_inference_compute_infer_duration_us": ("compute_infer_ns", 1000, "Time in the models, microseconds."),
    "nv_inference_compute_output_duration_us": ("compute_output_ns", 1000, "Time to copy outputs, microseconds."),
    "nv_cache_num_hits_per_model": ("cache_hit", 1, "Inferences answered from the response cache."),
    "nv_cache_num_misses_per_model": ("cache_miss", 1, "Inferences that were not found in the response cache."),
    "nv_cache_hit_duration_per_model": ("cache_hit_ns", 1000, "Time of lookups that found a response, microseconds."),
    "nv_cache_miss_duration_per_model": (
        "cache_miss_ns",
        1000,
        "Time of lookups that found none, and to keep the response, microseconds.",
    ),
}
_WHEN: Final = ("load_peak", "settled", "serving_peak", "offloaded")
_EDGES: Final = (*map(str, BUCKETS_S), "+Inf")
_EDGES_MS: Final = (*(f"{edge * 1000:g}" for edge in BUCKETS_S), "+Inf")
_MODEL: Final = ("model", "version")
_WORKER: Final = (*_MODEL, "instance")
_GPU: Final = ("gpu_uuid",)
_PIECE_SAMPLES: Final = 16

Json = Mapping[str, Any]  # one JSON object
StatusJson = Mapping[str, Any]  # JSON of the controller's status command
Row = Mapping[str, int]
Items = Sequence[tuple[tuple[str, str], Row]]
Labels = tuple[str, ...]
"""Names of a metric's labels, or the values of them."""
Rows = Sequence[tuple[Labels, Row]]
Samples = Iterable[tuple[Labels, float]]


def metrics_pieces(totals: Totals, status: StatusJson, host: HostUse | None = None) -> Iterator[bytes]:
    """The page in pieces of a few lines. `host`: None where it is not known."""
    items = sorted(totals.items())
    served = [each for each in items if not each[0][1].startswith((REFUSED_PREFIX, CURRENT))]
    yield from _nv_metrics(served)
    yield from _own_metrics(served)
    yield from _first_responses(items)
    yield from _refusals(items)
    yield from _current_metrics(items, totals.get((GATEWAY_ROW, CURRENT), {}))
    yield from _cold_metrics([((model,), row) for (model, version), row in items if version == COLD])
    yield from _controller_metrics(status)
    if host is not None:
        yield from _host_metrics(host)


class _OneMetric(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _pieces(
    metric: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily, rows: Iterable[tuple[Any, ...]]
) -> Iterator[bytes]:
    """The text of a metric: its head, then a few samples at a time. `rows`: arguments of its `add_metric`."""
    page = _OneMetric(metric)
    head = generate_latest(page)
    yield head
    for row in rows:
        metric.add_metric(*row)
        if len(metric.samples) >= _PIECE_SAMPLES:
            yield generate_latest(page).removeprefix(head)
            metric.samples.clear()
    yield generate_latest(page).removeprefix(head)


def _gauge(name: str, meaning: str, labels: Labels, samples: Samples) -> Iterator[bytes]:
    return _pieces(GaugeMetricFamily(name, meaning, labels=labels), samples)


def _counter(name: str, meaning: str, labels: Labels, samples: Samples) -> Iterator[bytes]:
    return _pieces(CounterMetricFamily(name, meaning, labels=labels), samples)


def _nv_counter(name: str, meaning: str, labels: Labels, samples: Samples) -> Iterator[bytes]:
    """A counter with the name that dashboards for Triton use. prometheus-client would append `_total` to it, so it is
    made as a gauge and declared as a counter."""
    pieces = _gauge(name, meaning, labels, samples)
    yield next(pieces).replace(b" gauge\n", b" counter\n")
    yield from pieces


def _times(name: str, meaning: str, labels: Labels, samples: Iterable[tuple[Labels, Row, int]]) -> Iterator[bytes]:
    """A histogram of times. `samples`: labels, the row of its buckets, all times in nanoseconds."""
    rows = ((each, _buckets(row), total_ns / 1e9) for each, row, total_ns in samples)
    return _pieces(HistogramMetricFamily(name, meaning, labels=labels), rows)


def _buckets(row: Row) -> list[tuple[str, int]]:
    counts = itertools.accumulate(row[f"bucket_{index}"] for index in range(len(_EDGES)))
    return list(zip(_EDGES, counts, strict=True))


def _nv_metrics(rows: Rows) -> Iterator[bytes]:
    for name, (column, divisor, meaning) in _NV_METRICS.items():
        yield from _nv_counter(name, meaning, _MODEL, ((key, row[column] // divisor) for key, row in rows))
    failures = (((*key, reason), row[f"fail_{reason}"]) for key, row in rows for reason in REASONS)
    meaning = "Inferences that failed, by reason."
    yield from _nv_counter("nv_inference_request_failure", meaning, (*_MODEL, "reason"), failures)
    pending = ((key, row["open"]) for key, row in rows if not key[1].startswith(CURRENT))
    meaning = "Requests that wait to be executed."
    yield from _gauge("nv_inference_pending_request_count", meaning, _MODEL, pending)


def _host_metrics(host: HostUse) -> Iterator[bytes]:
    for name, meaning, value in (
        ("utilization", "Share of all processors that was busy since the last look, 0 to 1.", host.utilization),
        ("memory_total_bytes", "Memory of the machine or container.", host.total_bytes),
        ("memory_used_bytes", "Memory of it that is in use.", host.used_bytes),
    ):
        yield from _gauge(f"nv_cpu_{name}", meaning, (), [((), value)])


def _own_metrics(rows: Rows) -> Iterator[bytes]:
    yield from _times(
        "mmsup_request_duration_seconds",
        "Time of inferences from head to reply, failed ones too.",
        _MODEL,
        ((key, row, row["request_ns"] + row["fail_ns"]) for key, row in rows),
    )
    yield from _counter(
        "mmsup_known_requests_total",
        "Inferences of nv_inference_request_success that were served as known requests (docs/fast-path.md).",
        _MODEL,
        ((key, row["known"]) for key, row in rows),
    )


def _first_responses(items: Items) -> Iterator[bytes]:
    """The histogram that Triton has of models that answer many times, in milliseconds."""
    rows = (
        ((model, of), [(edge, count) for edge, (_, count) in zip(_EDGES_MS, _buckets(row), strict=True)], row)
        for (model, version), row in items
        if (of := first_response_version(version))
    )
    meaning = "Time from a request to the first of its responses, of models that answer many times, milliseconds."
    metric = HistogramMetricFamily("nv_inference_first_response_histogram_ms", meaning, labels=_MODEL)
    return _pieces(metric, ((key, buckets, row["request_ns"] / 1e6) for key, buckets, row in rows))


def _refusals(items: Items) -> Iterator[bytes]:
    samples = (
        ((model, version.removeprefix(REFUSED_PREFIX)), row["refused"])
        for (model, version), row in items
        if version.startswith(REFUSED_PREFIX)
    )
    meaning = "Requests that were refused as invalid, by error code."
    return _counter("mmsup_requests_refused_total", meaning, ("model", "code"), samples)


def _current_metrics(items: Items, gateway: Row) -> Iterator[bytes]:
    opened = (((model,), row["open"]) for (model, version), row in items if version == CURRENT and model != GATEWAY_ROW)
    yield from _gauge("mmsup_requests_open", "Requests admitted and not yet answered.", ("model",), opened)
    for name, meaning in (
        ("arena_used_bytes", "Memory shared with workers that requests and results use."),
        ("arena_held_bytes", "Memory shared with workers that gateways hold, used or not."),
        ("front_fallback", "Gateways whose fast path failed its self-test, so that aiohttp serves all requests."),
    ):
        yield from _gauge(f"mmsup_{name}", meaning, (), [((), gateway.get(name, 0))])


def _cold_metrics(rows: Rows) -> Iterator[bytes]:
    labels = ("model",)
    starts = ((key, row["success"]) for key, row in rows)
    yield from _counter("mmsup_cold_starts_total", "Loads from sleep that requests have asked for.", labels, starts)
    waiting = ((key, row["open"]) for key, row in rows)
    yield from _gauge("mmsup_cold_requests_waiting", "Requests that wait for such loads.", labels, waiting)
    yield from _times(
        "mmsup_cold_start_seconds",
        "Time that requests have waited for such loads, failed ones too.",
        labels,
        ((key, row, row["request_ns"]) for key, row in rows),
    )


def _controller_metrics(status: StatusJson) -> Iterator[bytes]:
    models = [(str(each.get("name", "")), each) for each in status.get("models", ())]
    states = (((name, each), model.get("state") == each) for name, model in models for each in STATES)
    yield from _gauge("mmsup_model_state", "1 for the state that a model is in.", ("model", "state"), states)
    yield from _worker_metrics(models, is_stale=bool(status.get(STALE_KEY)))
    yield from _footprint_metrics(models)
    yield from _capacity_metrics(status.get("memory", {}), is_stale=bool(status.get(STALE_KEY)))
    yield from _gpu_metrics(status)
    generation = status.get("brain", {}).get("generation")
    meaning = "How many controllers have run, the present one included."
    yield from _gauge("mmsup_brain_generation", meaning, (), [((), generation)] if generation is not None else [])


def _worker_metrics(models: Sequence[tuple[str, Json]], *, is_stale: bool) -> Iterator[bytes]:
    workers = [
        ((name, str(each.get("version", "")), str(each.get("id", ""))), each)
        for name, model in models
        for each in model.get("instances", ())
    ]
    # Another gateway may have shown more: a counter must not fall, but may be missing.
    restarts = [] if is_stale else [(key, each.get("restarts") or 0) for key, each in workers]
    yield from _counter("mmsup_worker_restarts_total", "Times that a worker was started again.", _WORKER, restarts)
    yield from _gauge(
        "mmsup_workers_quarantined",
        "Workers that SIGKILL does not stop; alert on any.",
        ("model",),
        (
            ((name,), sum(each.get("state") == "quarantined" for each in model.get("instances", ())))
            for name, model in models
        ),
    )
    for name, meaning in (
        ("memory_bytes", "Host memory that a worker holds."),
        ("memory_cap_bytes", "Host memory that a worker may hold."),
        ("sequences", "Sequences that are live at a worker: they have a slot, or wait for one."),
    ):
        yield from _gauge(f"mmsup_worker_{name}", meaning, _WORKER, _known(workers, name))


def _known(rows: Iterable[tuple[Labels, Json]], member: str) -> Samples:
    return ((key, each[member]) for key, each in rows if each.get(member) is not None)


def _footprint_metrics(models: Sequence[tuple[str, Json]]) -> Iterator[bytes]:
    """What models were measured to need."""
    measured = [
        ((name, str(each.get("version", ""))), each) for name, model in models for each in model.get("footprints", ())
    ]
    held = (
        ((*key, str(each.get("device", "")), memory, when), value)
        for key, each in measured
        for (memory, prefix), when in itertools.product((("host", ""), ("gpu", "gpu_")), _WHEN)
        if (value := each.get(f"{prefix}{when}_bytes"))
    )
    meaning = "Memory that a worker of a model was measured to hold, of the host and of its GPU (docs/memory.md)."
    yield from _gauge("mmsup_model_footprint_bytes", meaning, (*_MODEL, "device", "memory", "when"), held)
    loads = ((key, each.get("load_s") or 0) for key, each in measured)
    yield from _gauge("mmsup_model_load_seconds", "How long the last load of a model took.", _MODEL, loads)
    restores = ((key, each["restore_s"]) for key, each in measured if each.get("restore_s"))
    meaning = "How long the last way back of a model from host memory took."
    yield from _gauge("mmsup_model_restore_seconds", meaning, _MODEL, restores)


def _capacity_metrics(memory: Json, *, is_stale: bool) -> Iterator[bytes]:
    """The budgets that workers share."""
    pools = [((str(each.get("memory", "")),), each) for each in memory.get("pools", ())]
    for member, name, meaning in (
        ("budget_bytes", "mmsup_memory_budget_bytes", "What all workers together may hold."),
        ("in_use_bytes", "mmsup_memory_in_use_bytes", "What they hold, or are expected to while they load."),
    ):
        yield from _gauge(name, meaning, ("memory",), [(key, each.get(member) or 0) for key, each in pools])
    counts = {} if is_stale else memory.get("evictions", {})
    evictions = [((reason,), count) for reason, count in counts.items()]
    meaning = "Models put to sleep because their memory was needed."
    yield from _counter("mmsup_evictions_total", meaning, ("reason",), evictions)


def _gpu_metrics(status: StatusJson) -> Iterator[bytes]:
    """What NVML does not report now has no value, rather than its last one."""
    gpus = [((str(each.get("uuid", "")),), each) for each in status.get("devices", ())]
    meaning = "1 where no new worker is placed on a GPU; alert on any."
    aside = [(key, bool(each.get("set_aside"))) for key, each in gpus]
    yield from _gauge("mmsup_device_set_aside", meaning, _GPU, aside)
    for member, name, meaning in (
        ("age_s", "mmsup_device_reading_age_seconds", "Age of the last values that NVML reported."),
        ("memory_total_bytes", "nv_gpu_memory_total_bytes", "Memory of a GPU."),
        ("memory_used_bytes", "nv_gpu_memory_used_bytes", "Memory of a GPU in use by any process."),
        ("utilization", "nv_gpu_utilization", "How busy a GPU is, 0 to 1."),
        ("power_watts", "nv_gpu_power_usage", "Power that a GPU takes, watts."),
        ("power_limit_watts", "nv_gpu_power_limit", "Power that a GPU may take, watts."),
    ):
        yield from _gauge(name, meaning, _GPU, _known([] if status.get(STALE_KEY) else gpus, member))
    meaning = "Energy that a GPU has taken since its driver was loaded, joules."
    energy = _known([] if status.get(STALE_KEY) else gpus, "energy_joules")
    yield from _nv_counter("nv_energy_consumption", meaning, _GPU, energy)
