"""The metrics page: every metric with its unit in its name and one sentence of meaning.

The `nv_*` counters have the names that dashboards for Triton use. The page is made in pieces (slices.py): with many
models it takes some ten milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from mmsup.gateway.observability.controller_status import STALE_KEY
from mmsup.gateway.observability.exposition import family, histogram, labels
from mmsup.gateway.observability.request_counters import COLD, CURRENT, GATEWAY_ROW, REASONS, REFUSED_PREFIX, Totals
from mmsup.ipc.memory.counters import BUCKETS_S

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
}
_WHEN: Final = ("load_peak", "settled", "serving_peak", "offloaded")
_EDGES: Final = (*map(str, BUCKETS_S), "+Inf")
_BUCKETS: Final = tuple(f"bucket_{index}" for index in range(len(_EDGES)))

Json = Mapping[str, Any]  # one JSON object
StatusJson = Mapping[str, Any]  # JSON of the controller's status command
Row = Mapping[str, int]
Items = Sequence[tuple[tuple[str, str], Row]]
Rows = Sequence[tuple[str, Row]]
"""Of model versions, or of models, with their labels."""
Samples = Iterable[tuple[str, float]]


def metrics_pieces(totals: Totals, status: StatusJson) -> Iterator[str]:
    """The page in pieces of a few lines."""
    items = sorted(totals.items())
    served = [
        (labels(model=model, version=version), row)
        for (model, version), row in items
        if not version.startswith((REFUSED_PREFIX, CURRENT))
    ]
    yield from _nv_metrics(served)
    yield from _own_metrics(served)
    yield from _refusals(items)
    yield from _current_metrics(items, totals.get((GATEWAY_ROW, CURRENT), {}))
    yield from _cold_metrics([(labels(model=model), row) for (model, version), row in items if version == COLD])
    yield from _controller_metrics(status)


def _nv_metrics(rows: Rows) -> Iterator[str]:
    for name, (column, divisor, meaning) in _NV_METRICS.items():
        yield from family("counter", name, meaning, ((label, row[column] // divisor) for label, row in rows))
    failures = (
        (label.replace(",version=", f',reason="{reason}",version='), row[f"fail_{reason}"])
        for label, row in rows
        for reason in REASONS
    )
    yield from family("counter", "nv_inference_request_failure", "Inferences that failed, by reason.", failures)


def _own_metrics(rows: Rows) -> Iterator[str]:
    yield from _times(
        "mmsup_request_duration_seconds",
        "Time of inferences from head to reply, failed ones too.",
        ((label, row, row["request_ns"] + row["fail_ns"]) for label, row in rows),
    )
    yield from family(
        "counter",
        "mmsup_known_requests_total",
        "Inferences of nv_inference_request_success that were served as known requests (docs/fast-path.md).",
        ((label, row["known"]) for label, row in rows),
    )


def _times(name: str, meaning: str, samples: Iterable[tuple[str, Row, int]]) -> Iterator[str]:
    """A histogram of times. `samples`: labels, the row of its buckets, all times in nanoseconds."""
    counted = ((label, [row[each] for each in _BUCKETS], total_ns / 1e9) for label, row, total_ns in samples)
    return histogram(name, meaning, _EDGES, counted)


def _refusals(items: Items) -> Iterator[str]:
    samples = (
        (labels(code=version.removeprefix(REFUSED_PREFIX), model=model), row["refused"])
        for (model, version), row in items
        if version.startswith(REFUSED_PREFIX)
    )
    meaning = "Requests that were refused as invalid, by error code."
    return family("counter", "mmsup_requests_refused_total", meaning, samples)


def _current_metrics(items: Items, gateway: Row) -> Iterator[str]:
    opened = (
        (labels(model=model), row["open"])
        for (model, version), row in items
        if version == CURRENT and model != GATEWAY_ROW
    )
    yield from family("gauge", "mmsup_requests_open", "Requests admitted and not yet answered.", opened)
    for name, meaning in (
        ("arena_used_bytes", "Memory shared with workers that requests and results use."),
        ("arena_held_bytes", "Memory shared with workers that gateways hold, used or not."),
        ("front_fallback", "Gateways whose fast path failed its self-test, so that aiohttp serves all requests."),
    ):
        yield from family("gauge", f"mmsup_{name}", meaning, [("", gateway.get(name, 0))])


def _cold_metrics(rows: Rows) -> Iterator[str]:
    starts = ((label, row["success"]) for label, row in rows)
    waiting = ((label, row["open"]) for label, row in rows)
    yield from family("counter", "mmsup_cold_starts_total", "Loads from sleep that requests have asked for.", starts)
    yield from family("gauge", "mmsup_cold_requests_waiting", "Requests that wait for such loads.", waiting)
    yield from _times(
        "mmsup_cold_start_seconds",
        "Time that requests have waited for such loads, failed ones too.",
        ((label, row, row["request_ns"]) for label, row in rows),
    )


def _controller_metrics(status: StatusJson) -> Iterator[str]:
    models = [(str(each.get("name", "")), each) for each in status.get("models", ())]
    yield from family(
        "gauge",
        "mmsup_model_state",
        "1 for the state that a model is in.",
        ((labels(model=name, state=each), model.get("state") == each) for name, model in models for each in STATES),
    )
    yield from _worker_metrics(models, is_stale=bool(status.get(STALE_KEY)))
    yield from _footprint_metrics(models)
    yield from _capacity_metrics(status.get("memory", {}), is_stale=bool(status.get(STALE_KEY)))
    yield from _gpu_metrics(status)
    generation = status.get("brain", {}).get("generation")
    meaning = "How many controllers have run, the present one included."
    yield from family("gauge", "mmsup_brain_generation", meaning, [("", generation)] if generation is not None else [])


def _worker_metrics(models: Sequence[tuple[str, Json]], *, is_stale: bool) -> Iterator[str]:
    workers = [
        (labels(instance=str(each.get("id", "")), model=name, version=str(each.get("version", ""))), each)
        for name, model in models
        for each in model.get("instances", ())
    ]
    # Another gateway may have shown more: a counter must not fall, but may be missing.
    restarts = [] if is_stale else [(label, each.get("restarts") or 0) for label, each in workers]
    meaning = "Times that a worker was started again."
    yield from family("counter", "mmsup_worker_restarts_total", meaning, restarts)
    yield from family(
        "gauge",
        "mmsup_workers_quarantined",
        "Workers that SIGKILL does not stop; alert on any.",
        (
            (labels(model=name), sum(each.get("state") == "quarantined" for each in model.get("instances", ())))
            for name, model in models
        ),
    )
    for name, meaning in (
        ("memory_bytes", "Host memory that a worker holds."),
        ("memory_cap_bytes", "Host memory that a worker may hold."),
    ):
        yield from family("gauge", f"mmsup_worker_{name}", meaning, _known(workers, name))


def _known(rows: Iterable[tuple[str, Json]], member: str) -> Samples:
    return ((label, each[member]) for label, each in rows if each.get(member) is not None)


def _footprint_metrics(models: Sequence[tuple[str, Json]]) -> Iterator[str]:
    """What models were measured to need."""
    measured = [
        (name, str(each.get("version", "")), each) for name, model in models for each in model.get("footprints", ())
    ]
    held = (
        (labels(device=str(each.get("device", "")), memory=memory, model=name, version=version, when=when), value)
        for name, version, each in measured
        for (memory, prefix), when in itertools.product((("host", ""), ("gpu", "gpu_")), _WHEN)
        if (value := each.get(f"{prefix}{when}_bytes"))
    )
    meaning = "Memory that a worker of a model was measured to hold, of the host and of its GPU (docs/memory.md)."
    yield from family("gauge", "mmsup_model_footprint_bytes", meaning, held)
    loads = ((labels(model=name, version=version), each.get("load_s") or 0) for name, version, each in measured)
    yield from family("gauge", "mmsup_model_load_seconds", "How long the last load of a model took.", loads)
    restores = [(labels(model=name, version=version), each.get("restore_s") or 0) for name, version, each in measured]
    meaning = "How long the last way back of a model from host memory took."
    yield from family("gauge", "mmsup_model_restore_seconds", meaning, [each for each in restores if each[1]])


def _capacity_metrics(memory: Json, *, is_stale: bool) -> Iterator[str]:
    """The budgets that workers share."""
    pools = [(labels(memory=str(each.get("memory", ""))), each) for each in memory.get("pools", ())]
    for member, name, meaning in (
        ("budget_bytes", "mmsup_memory_budget_bytes", "What all workers together may hold."),
        ("in_use_bytes", "mmsup_memory_in_use_bytes", "What they hold, or are expected to while they load."),
    ):
        yield from family("gauge", name, meaning, [(label, each.get(member) or 0) for label, each in pools])
    counts = {} if is_stale else memory.get("evictions", {})
    evictions = [(labels(reason=reason), count) for reason, count in counts.items()]
    meaning = "Models put to sleep because their memory was needed."
    yield from family("counter", "mmsup_evictions_total", meaning, evictions)


def _gpu_metrics(status: StatusJson) -> Iterator[str]:
    """What NVML does not report now has no value, rather than its last one."""
    gpus = [(labels(gpu_uuid=str(each.get("uuid", ""))), each) for each in status.get("devices", ())]
    meaning = "1 where no new worker is placed on a GPU; alert on any."
    aside = [(label, bool(each.get("set_aside"))) for label, each in gpus]
    yield from family("gauge", "mmsup_device_set_aside", meaning, aside)
    for member, name, meaning in (
        ("age_s", "mmsup_device_reading_age_seconds", "Age of the last values that NVML reported."),
        ("memory_total_bytes", "nv_gpu_memory_total_bytes", "Memory of a GPU."),
        ("memory_used_bytes", "nv_gpu_memory_used_bytes", "Memory of a GPU in use by any process."),
    ):
        yield from family("gauge", name, meaning, _known([] if status.get(STALE_KEY) else gpus, member))
