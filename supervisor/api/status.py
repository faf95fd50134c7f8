"""The state of the server, its processes and its models as JSON. The shapes are a contract with people's tools."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import mmsup
from mmsup.ipc.messages.keeper_control import KeeperInventory
from mmsup.ipc.specs import Metadata, ModelSpec
from mmsup.supervisor.api.ensemble_views import index_row, with_steps
from mmsup.supervisor.gateways.gateway_process import GatewayProcess, GatewayRole
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gateways.rpc_front import RpcFront
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import LOADING, OFFLOADABLE, InstanceState
from mmsup.supervisor.models.model import Model, asleep_in, state_of
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ServerReadiness
from mmsup.supervisor.models.sleep_state import ASLEEP
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.on_demand import model_usage
from mmsup.supervisor.processes import usage
from mmsup.supervisor.processes.launch_spec import public_addresses
from mmsup.supervisor.zygotes.zygote_process import Zygote

Json = dict[str, Any]  # one JSON object

_INDEX_STATES: Final = {
    **dict.fromkeys((InstanceState.ABSENT, *LOADING, *OFFLOADABLE, InstanceState.BACKOFF), "LOADING"),
    InstanceState.READY: "READY",
    InstanceState.DRAINING: "UNLOADING",
}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    inventory: KeeperInventory
    started_s: float
    isolation: str
    """How memory caps are enforced on this machine."""
    readiness: Callable[[], ServerReadiness]
    kept_aside: Callable[[], list[str]] = list
    """Names of files of the state directory that could not be read."""


class StatusViews:
    def __init__(
        self,
        server: ServerInfo,
        model_set: ModelSet,
        gateways: GatewayPool,
        event_log: EventLog,
        devices: Callable[[], list[Json]],
        zygotes: Callable[[], list[Zygote]],
        rpc_front: RpcFront,
    ) -> None:
        self._server = server
        self._model_set = model_set
        self._gateways = gateways
        self._event_log = event_log
        self._devices = devices
        self._zygotes = zygotes
        self._rpc_front = rpc_front
        self._made_s = time.monotonic()
        """When this controller began."""

    def status(self) -> Json:
        server, inventory, readiness = self._server, self._server.inventory, self._server.readiness()
        http = inventory.addresses.get("http", "")
        controller = {"pid": os.getpid(), "generation": inventory.generation}
        gateways = [{"pid": _pid(each), "generation": each.generation, "http": http} for each in self._gateways.seats]
        return {
            "version": mmsup.__version__,
            "ready": readiness.ready,
            "reason": readiness.reason,
            "uptime_s": round(time.monotonic() - server.started_s, 1),
            "isolation": server.isolation,
            "state_kept_aside": server.kept_aside(),
            "addresses": public_addresses(inventory.addresses),
            "keeper": {"pid": inventory.keeper_pid},
            "controller": controller,
            "brain": controller,  # the name of version 0.1; goes with the next release
            "gateways": gateways,
            "spare_gateways": self._gateways.standby.counts(),
            "grpc_front": self._rpc_front.status(),
            "memory": self._model_set.memory.status(),
            "zygotes": [_status_of_zygote(each) for each in self._zygotes()],
            "devices": self._devices(),
            "models": [
                with_steps(_status_of(each, footprints), each, self._model_set.models) | {"footprints": footprints}
                for each in self._models()
                for footprints in [self._model_set.memory.footprints(each.name)]
            ],
        }

    def overview(self) -> Json:
        return {
            "memory": self._model_set.memory.status(),
            "models": [
                with_steps(_row_of(each, self._model_set.memory.footprints(each.name)), each, self._model_set.models)
                for each in self._models()
            ],
        }

    def ps(self) -> Json:
        """All processes, one row each. The role of the controller is `brain` until the next release."""
        inventory, standby, now_s = self._server.inventory, self._gateways.standby, time.monotonic()
        rows = [
            _process("keeper", 0, inventory.keeper_pid, 1, self._server.started_s),
            _process("brain", 0, os.getpid(), inventory.generation, self._made_s),
        ]
        for gateway in self._gateways.processes():
            row = _process("gateway", gateway.number, _pid(gateway), gateway.generation, gateway.spawned_s)
            is_standby = gateway is standby.gateway and standby.is_ready()
            seat = self._gateways.seats.index(gateway) if gateway in self._gateways.seats else None
            rows.append(row | {"state": "spare" if is_standby else _state_of(gateway), "seat": seat})
        front = self._rpc_front
        if front.process is not None:
            row = _process("grpc-front", 0, front.process.pid, front.number, front.started_s)
            rows.append(row | {"state": "ready" if front.process.has_served else "starting"})
        for zygote in self._zygotes():
            status = _status_of_zygote(zygote)
            row = _process("zygote", zygote.number, status["pid"], 1, zygote.started_s)
            rows.append(row | {"state": status["state"], "imports": status["imports"]})
        for model in self._models():
            rows += [_worker_row(each, now_s) for each in model.instances() if each.process is not None]
        return {"processes": rows}

    def show(self, model: Model) -> Json:
        footprints = self._model_set.memory.footprints(model.name)
        versions = model.active.versions if model.active else []
        specs = [_spec_in_force(each.spec, each.metadata) for each in versions] or [
            asdict(each) for each in (model.entry.specs if model.sleep.is_asleep and model.entry else ())
        ]
        known = [each.metadata for each in versions] or list(model.sleep.metadata.values())
        metadata = next((each for each in reversed(known) if each), None)
        instances = list(model.instances())
        faults = (*model.entry.errors, *model.entry.warnings) if model.entry else ()
        events = [event for each in instances for event in self._event_log.recent(each.id)]
        shown = {"state": str(model.state()), "reason": model.reason()}
        return {
            "name": model.name,
            "wanted": "up" if model.wanted else "down",
            **with_steps(shown, model, self._model_set.models),
            "group": ", ".join(sorted(model.groups())),
            **_use_of(model, footprints),
            "specs": specs,
            "metadata": asdict(metadata) if metadata else None,
            "instances": [_instance(each) for each in instances],
            "footprints": footprints,
            "faults": [{"place": each.place, "text": each.text, "paste": each.paste} for each in faults],
            "story": sorted(events, key=lambda each: str(each["time"])) or self._event_log.last(12, model.name),
        }

    def index(self, *, only_ready: bool) -> list[Json]:
        """Triton's repository index: a row for each version, or for a model that has none."""
        models = self._model_set.models
        rows = [index_row(row, model, models) for model in self._models() for row in _index_rows(model)]
        return [row for row in rows if row.get("state") == "READY"] if only_ready else rows

    def _models(self) -> list[Model]:
        return [self._model_set.models[name] for name in sorted(self._model_set.models)]


def _status_of_zygote(zygote: Zygote) -> Json:
    return {
        "pid": zygote.process.pid if zygote.process is not None else None,
        "state": "ready" if zygote.is_ready else "starting",
        "imports": zygote.key.engine_set,
        "interpreter": zygote.key.interpreter,
    }


def _status_of(model: Model, footprints: list[Json]) -> Json:
    versions = model.active.versions if model.active else []
    return {
        "name": model.name,
        "state": str(model.state()),
        "reason": model.reason(),
        "group": ", ".join(sorted(model.groups())),
        "versions": {each.spec.version: str(state_of(each)) for each in versions} or _asleep_versions(model),
        "instances": [_instance(each) for each in model.instances()],
        **_use_of(model, footprints),
    }


def _asleep_versions(model: Model) -> Json:
    return {each.version: each.state for each in model.routed_versions()} if model.state() == ASLEEP else {}


def _spec_in_force(spec: ModelSpec, metadata: Metadata | None) -> Json:
    """A version's configuration with what its own code has added to it."""
    added = {"max_batch_size": metadata.max_batch_size, "decoupled": metadata.decoupled} if metadata else {}
    return asdict(spec) | added


def _use_of(model: Model, footprints: list[Json]) -> Json:
    """When it was last asked, how often of late, and what its next load is likely to take: as its last one, perhaps of
    an earlier server; None where that is not known."""
    now_s, used_s, load_s = time.monotonic(), model.sleep.last_use_s, model_usage.load_s(model)
    if load_s is None:
        load_s = max((each["load_s"] for each in footprints), default=0.0) or None
    return {
        "last_use_s": round(now_s - used_s, 1) if used_s else None,
        "use_rate": round(model.sleep.use.at(now_s), 6),
        "cold_start_s": round(load_s, 3) if load_s is not None else None,
        "asleep_s": round(now_s - model.sleep.since_s, 1) if model.sleep.is_asleep else None,
        "asleep_in": asleep_in(model),
    }


def _row_of(model: Model, footprints: list[Json]) -> Json:
    status = _status_of(model, footprints)
    specs = [each.spec for each in model.active.versions] if model.active else model.entry.specs if model.entry else ()
    return {
        "name": model.name,
        "wanted": "up" if model.wanted else "down",
        "state": status["state"],
        "reason": status["reason"],
        "engine": ", ".join(sorted({each.engine for each in specs})),
        "group": status["group"],
        "versions": status["versions"],
        "instances": len(status["instances"]),
        "last_use_s": status["last_use_s"],
        "cold_start_s": status["cold_start_s"],
    }


def _instance(instance: Instance) -> Json:
    return {
        "id": instance.id,
        "version": instance.revision.spec.version,
        "pid": instance.process.pid if instance.process else None,
        "generation": instance.generation,
        "state": str(instance.state),
        "activity": instance.process.progress().activity.name.lower() if instance.process else "",
        "restarts": max(instance.generation - 1, 0),
        "memory_bytes": _memory_bytes(instance),
        "sequences": _live_sequences(instance),
        **_company(instance),
        "start": instance.start if instance.worker else "",
    }


def _live_sequences(instance: Instance) -> int | None:
    """None of a model whose requests are independent of each other."""
    if instance.revision.spec.sequences is None or instance.process is None:
        return None
    return instance.process.progress().sequences


def _company(instance: Instance) -> Json:
    """Of a member of a co-location group: who shares its process, whose memory is that of all, and whether it is this
    one that runs or loads there now."""
    shared = instance.worker.shared if instance.worker is not None else None
    if shared is None:
        return {}
    worker_id = instance.worker_id
    return {"shares_with": list(shared.names_beside(worker_id)), "running": shared.is_running(worker_id)}


def _memory_bytes(instance: Instance) -> int | None:
    """What the kernel counts for the worker's control group, else the resident memory of its process."""
    if instance.worker is None or instance.process is None:
        return None
    found = instance.worker.group.read()
    return found.usage_bytes if found else usage.resident_bytes(instance.process.pid)


def _process(role: str, number: int, pid: int | None, generation: int, started_s: float) -> Json:
    return {
        "role": role,
        "id": number,
        "model": "",
        "version": "",
        "pid": pid,
        "generation": generation,
        "state": "ready",
        "activity": "",
        "restarts": max(generation - 1, 0),
        "memory_bytes": usage.resident_bytes(pid) if pid else None,
        "sequences": None,
        "memory_cap_bytes": None,
        "uptime_s": round(time.monotonic() - started_s, 1),
        "requests": None,
        "seat": None,
        "start": "",
    }


def _worker_row(instance: Instance, now_s: float) -> Json:
    assert instance.worker is not None, f"instance {instance.id} has no process"
    assert instance.process is not None, f"instance {instance.id} has no process"
    spec = instance.revision.spec
    progress = instance.process.progress()
    return {
        "role": "worker",
        "model": spec.name,
        **_instance(instance),
        "memory_cap_bytes": instance.worker.group.cap_bytes or spec.memory_bytes,
        "uptime_s": round(now_s - instance.worker.spawned_s, 1),
        "requests": progress.requests,
        "seat": None,
    }


def _index_rows(model: Model) -> Iterator[Json]:
    if not model.wanted:
        if model.unloaded:
            newest = model.entry.all_versions[-1:] if model.entry else ()
            for version in newest or ("",):
                yield {"name": model.name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"}
        elif model.entry is not None:
            yield {"name": model.name}
        return
    for each in model.routed_versions():
        if each.state == ASLEEP:
            reason = f"{ASLEEP}, in host memory" if asleep_in(model) == "host-memory" else ASLEEP
            yield {"name": model.name, "version": each.version, "state": "READY", "reason": reason}
            continue
        state = _INDEX_STATES.get(InstanceState(each.state), "UNAVAILABLE")
        reason = "" if state == "READY" else f"{each.state}: {each.reason}" if each.reason else each.state
        yield {"name": model.name, "version": each.version, "state": state, "reason": reason}


def _state_of(gateway: GatewayProcess) -> str:
    if not gateway.synced:
        return "starting"
    return "draining" if gateway.role is GatewayRole.UNSEATED else "ready"


def _pid(gateway: GatewayProcess) -> int | None:
    return gateway.process.pid if gateway.process is not None else None
