"""Triton's statistics extension: the counters of model versions as its JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from mmsup.gateway.observability.request_counters import REASONS, BatchTotals, Totals
from mmsup.gateway.observability.response_counters import response_stats
from mmsup.ipc.memory.counters import FIELDS
from mmsup.ipc.messages.gateway_control import Route

Json = dict[str, Any]  # a JSON object
_COMPUTE: Final = ("compute_input", "compute_infer", "compute_output")


def model_statistics(
    routes: Iterable[Route], totals: Totals, batches: BatchTotals, status: Mapping[str, Any], version: str = ""
) -> Iterator[Json]:
    """Statistics of all versions of these models, or of one, one by one. `status`: of the controller."""
    instances = {known.get("name"): known.get("instances", ()) for known in status.get("models", ())}
    for route in routes:
        for each in route.versions:
            if version in ("", each.version):
                memory = _memory(each.version, instances.get(route.name, ()))
                yield _version_statistics((route.name, each.version), totals, batches, memory)


def _version_statistics(key: tuple[str, str], totals: Totals, batches: BatchTotals, memory: list[Json]) -> Json:
    model, version = key
    row = totals.get(key) or dict.fromkeys(FIELDS, 0)
    succeeded = row["success"]
    ran = succeeded - row["cache_hit"]
    failed = sum(row[f"fail_{reason}"] for reason in REASONS)
    return {
        "name": model,
        "version": version,
        "last_inference": row["last_inference_ms"],
        "inference_count": row["inference_count"],
        "execution_count": row["exec_count"],
        "inference_stats": {
            "success": _duration(succeeded, row["request_ns"]),
            "fail": _duration(failed, row["fail_ns"]),
            "queue": _duration(succeeded, row["queue_ns"]),
            "compute_input": _duration(ran, row["compute_input_ns"]),
            "compute_infer": _duration(ran, row["compute_infer_ns"]),
            "compute_output": _duration(ran, row["compute_output_ns"]),
            "cache_hit": _duration(row["cache_hit"], row["cache_hit_ns"]),
            "cache_miss": _duration(row["cache_miss"], row["cache_miss_ns"]),
        },
        "batch_stats": _batches(batches.get(key, {})),
        "memory_usage": memory,
        "response_stats": response_stats(model, version, totals),
    }


def _batches(by_size: Mapping[int, Mapping[str, int]]) -> list[Json]:
    return [
        {"batch_size": size} | {name: _duration(row["exec_count"], row[f"{name}_ns"]) for name in _COMPUTE}
        for size, row in sorted(by_size.items())
        if row["exec_count"]
    ]


def _duration(count: int, ns: int) -> Json:
    return {"count": count, "ns": ns}


def _memory(version: str, instances: Iterable[Json]) -> list[Json]:
    sizes = [each.get("memory_bytes") or 0 for each in instances if each.get("version") == version]
    return [{"type": "CPU", "id": 0, "byte_size": sum(sizes)}] if sizes else []
