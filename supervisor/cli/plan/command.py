"""`mmsup plan`: which models of a configuration fit into memory, and who would have to go for the others."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click

from mmsup.ipc import exit_codes
from mmsup.ipc.memory.available_memory import total_bytes
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.capacity import footprint, footprint_store, plan
from mmsup.supervisor.capacity.admission import Pool
from mmsup.supervisor.capacity.budget import MemoryBudgets, memory_budgets
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.capacity.plan import ModelUse, Placement, PlannedModel
from mmsup.supervisor.cli.command.failure import CommandFailed
from mmsup.supervisor.cli.ctl.control_client import NoServer, ServerRefused, call_server
from mmsup.supervisor.cli.output.tables import draw
from mmsup.supervisor.cli.output.text import cell
from mmsup.supervisor.cli.serve.flags import given_flags, server_flags
from mmsup.supervisor.cli.serve.triton_flags import triton_flags
from mmsup.supervisor.config.server_options import read_config
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.config.units import age, size_text
from mmsup.supervisor.repository.scanner import ModelEntry, scan

Json = dict[str, Any]  # one JSON object

HOST: Final = "host memory"
VICTIMS_SHOWN: Final = 2
"""In the table; all are in the JSON."""


@dataclass(frozen=True, slots=True)
class _SeenDevice:
    uuid: str
    total_bytes: int


@click.command("plan", short_help="Which models fit into memory, and who would go for whom.")
@server_flags
@triton_flags
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plan_command(as_json: bool, **parsed: object) -> None:
    """Which models fit into the budgets of memory, who would have to go for the others, how long each takes to start.

    Takes the flags of serve; starts nothing, and may be run beside a server, which tells it of the GPUs, which models
    are loaded and how often each is used. What models need was measured by servers with this state directory; without
    that it is guessed from the size of their files.

    \b
    Example:  mmsup plan --model-repository models --memory-budget 8GiB
              mmsup plan --config server.yaml --json
    \b
    Exit codes: 0 all pinned models fit, 1 one does not, 2 wrong usage or configuration.
    """
    config = read_config(given_flags(parsed), os.environ, os.getuid())
    if config.settings is None:
        raise CommandFailed("\n".join(str(fault) for fault in config.errors), exit_codes.USAGE)
    scanned = scan(config.settings)
    if scanned.errors:
        raise CommandFailed("\n".join(str(fault) for fault in scanned.errors), exit_codes.USAGE)
    entries = scanned.models.values()
    budgets = memory_budgets(config.settings, total_bytes())
    host = Pool(HOST, "--memory-budget", budgets.host_bytes, is_configured=True)
    seen = _seen_devices(config.settings.runtime_dir)
    devices = _devices(budgets, {name: each.total_bytes for name, each in seen.items()})
    store = FootprintStore(Path(config.settings.state_dir) / footprint_store.FILE_NAME)
    contexts = _contexts(store, [each.name for each in devices], {name: each.uuid for name, each in seen.items()})
    uses = _seen_uses(config.settings.runtime_dir)
    found = plan.plan(_planned_models(config.settings, entries, store, contexts, uses), host, devices)
    faulty = [{"name": each.name, "reason": each.reason} for each in entries if each.errors]
    result = _result(found, [host, *devices], contexts) | {"faulty": faulty}
    click.echo(json.dumps(result)) if as_json else _draw(result)
    raise SystemExit(exit_codes.SUCCESS if result["ok"] else exit_codes.REFUSED)


def _planned_models(
    settings: Settings,
    entries: Iterable[ModelEntry],
    store: FootprintStore,
    contexts: Mapping[str, int],
    uses: Mapping[str, ModelUse],
) -> list[PlannedModel]:
    """`uses`: by model, as a running server sees them; empty without one."""
    unknown = ModelUse(use_rate=0.0) if uses else ModelUse()
    return [
        replace(_planned(settings, spec, entry, store, contexts), use=uses.get(spec.name, unknown))
        for entry in entries
        for spec in entry.specs
    ]


def _planned(
    settings: Settings, spec: ModelSpec, entry: ModelEntry, store: FootprintStore, contexts: Mapping[str, int]
) -> PlannedModel:
    measured = store.get(footprint.footprint_key(spec), entry.file_digest)
    artifact = footprint.artifact_bytes(spec.directory)
    largest = max(contexts.values(), default=footprint.CUDA_CONTEXT_BYTES)
    context_bytes = contexts.get(spec.device, largest)  # on which GPU it is going to be is not known yet
    device = "" if spec.device == "cpu" else "cuda" if spec.device == "auto" else spec.device
    return PlannedModel(
        spec.name,
        spec.version,
        spec.effective_priority(0),
        footprint.host_need(spec, measured, artifact).times(spec.instances),
        device,
        footprint.gpu_need(spec, measured, artifact, context_bytes).times(spec.instances),
        measured.load_s if measured is not None else 0.0,
        spec.pin,
        spec.is_evictable(settings.control_mode),
    )


def _seen_devices(runtime_dir: str) -> dict[str, _SeenDevice]:
    """The GPUs of the server that runs here, by name; none without a server."""
    with contextlib.suppress(NoServer, ServerRefused):
        rows = call_server(runtime_dir, "devices", {})["devices"]
        return {
            str(each["device"]): _SeenDevice(str(each.get("uuid", "")), each["memory_total_bytes"])
            for each in rows
            if each.get("memory_total_bytes")
        }
    return {}


def _seen_uses(runtime_dir: str) -> dict[str, ModelUse]:
    """How each model of the server that runs here is used; none without a server."""
    with contextlib.suppress(NoServer, ServerRefused):
        return {each["name"]: _use(each) for each in call_server(runtime_dir, "status", {})["models"]}
    return {}


def _use(row: Json) -> ModelUse:
    """`row`: of a model in the status."""
    idle_s = row["last_use_s"]
    is_loaded = any(each["pid"] for each in row["instances"])
    return ModelUse(is_loaded, row.get("use_rate", 0.0), math.inf if idle_s is None else idle_s)


def _contexts(store: FootprintStore, names: Iterable[str], uuids: Mapping[str, str]) -> dict[str, int]:
    """What a context was measured to take of each of these GPUs; those where none was are left out."""
    measured = store.contexts.by_device
    found = {name: measured.get(uuids.get(name, name), 0) for name in names}
    return {name: size_bytes for name, size_bytes in found.items() if size_bytes}


def _devices(budgets: MemoryBudgets, seen: Mapping[str, int]) -> list[Pool]:
    names = [*seen, *(each for each in budgets.by_device if each and each not in seen)]
    sizes = {name: budgets.of_device(name) or seen.get(name, 0) for name in names}
    return [Pool(name, "--gpu-memory-budget", size, is_configured=True) for name, size in sizes.items() if size]


def _result(placements: list[Placement], pools: list[Pool], contexts: Mapping[str, int]) -> Json:
    fitting = [each for each in placements if each.fits]
    held = {
        pool.name: sum(
            (each.model.host if pool.name == HOST else each.model.gpu).settled_bytes
            for each in fitting
            if pool.name in (HOST, each.device)
        )
        for pool in pools
    }
    on_gpu = [each for each in fitting if each.device]
    misfits = [each.model.holder for each in plan.pinned_misfits(placements)]
    return {
        "ok": not misfits,
        "pinned_misfits": misfits,
        "memory": [
            {"memory": each.name, "budget_bytes": each.budget_bytes, "planned_bytes": held[each.name]} for each in pools
        ],
        "cuda_contexts": {
            "count": len(on_gpu),
            "bytes": sum(contexts.get(each.device, footprint.CUDA_CONTEXT_BYTES) for each in on_gpu),
            "by_device": {
                name: {"bytes": contexts.get(name, footprint.CUDA_CONTEXT_BYTES), "measured": name in contexts}
                for name in dict.fromkeys(each.device for each in on_gpu)
            },
        },
        "models": [_row(each) for each in placements],
    }


def _row(placement: Placement) -> Json:
    model = placement.model
    return {
        "name": model.name,
        "version": model.version,
        "priority": model.priority,
        "pinned": model.is_pinned,
        "host_bytes": model.host.needed_bytes,
        "gpu_bytes": model.gpu.needed_bytes,
        "measured": model.is_measured,
        "cold_start_s": model.load_s or None,
        "device": placement.device or model.device or "cpu",
        "fits": placement.fits,
        "evicts": list(placement.evicts),
        "why_not": placement.why_not,
    }


def _draw(result: Json) -> None:
    columns = [">PRIORITY", "MODEL", "VERSION", "DEVICE", ">HOST", ">GPU", "BASIS", ">START", "PLACE"]
    draw(columns, [_cells(each) for each in result["models"]])
    click.echo()
    fitting, known = sum(each["fits"] for each in result["models"]), len(result["models"])
    click.echo(f"versions: {fitting} of {known} fit together")
    for each in result["memory"]:
        planned, budget = size_text(each["planned_bytes"]), size_text(each["budget_bytes"])
        click.echo(f"{cell(each['memory'])}: {planned} of {budget} by the models that fit")
    contexts = result["cuda_contexts"]
    if contexts["count"]:
        each_takes = ", ".join(
            f"{size_text(each['bytes'])} on {cell(name)} ({'measured' if each['measured'] else 'a guess'})"
            for name, each in contexts["by_device"].items()
        )
        text = f"CUDA contexts: {contexts['count']}, {size_text(contexts['bytes'])} of the GPU memory above"
        click.echo(f"{text}; each takes {each_takes}")
    for name in result["pinned_misfits"]:
        click.echo(f"{cell(name)} is pinned and does not fit")
    for each in result["faulty"]:
        click.echo(
            f"{cell(each['name'])} has faults, what they concern is not planned (mmsup check): {cell(each['reason'])}"
        )


def _cells(row: Json) -> list[str]:
    return [
        cell(row["priority"]),
        cell(row["name"]),
        cell(row["version"]),
        cell(row["device"]),
        size_text(row["host_bytes"]),
        size_text(row["gpu_bytes"]) if row["gpu_bytes"] else "",
        "measured" if row["measured"] else "guess",
        age(row["cold_start_s"]),
        f"{'pinned, ' if row['pinned'] else ''}{cell(_place(row))}",
    ]


def _place(row: Json) -> str:
    if row["fits"]:
        return "fits"
    shown, more = row["evicts"][:VICTIMS_SHOWN], len(row["evicts"]) - VICTIMS_SHOWN
    return f"evicts {', '.join(shown)}{f' and {more} more' if more > 0 else ''}" if shown else str(row["why_not"])
