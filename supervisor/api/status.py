"""What the verbs that only read answer: the state of everything as JSON. The shapes are a contract with people's tools.

Called by verbs.py for the control socket and for gateways. Nothing here changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import mmsup
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import STARTING_UP, InstanceState
from mmsup.supervisor.models.model import Model, state_of
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.models.readiness import ServerReadiness
from mmsup.supervisor.observability.event_log import EventLog
from mmsup.supervisor.processes import usage

Json = dict[str, Any]  # one JSON object

_INDEX_STATES: Final = {
    **dict.fromkeys((InstanceState.ABSENT, *STARTING_UP, InstanceState.BACKOFF), "LOADING"),
    InstanceState.READY: "READY",
    InstanceState.DRAINING: "UNLOADING",
}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Facts about the server as a whole."""

    keeper_pid: int
    controller_pid: int
    controller_generation: int
    started_s: float
    addresses: dict[str, str]
    isolation: str
    """How caps are kept on this machine."""
    readiness: Callable[[], ServerReadiness]


class StatusViews:
    """Over everything there is."""

    def __init__(
        self,
        server: ServerInfo,
        fleet: ModelSet,
        gateways: GatewayPool,
        journal: EventLog,
        devices: Callable[[], list[Json]],
    ) -> None:
        self._server = server
        self._fleet = fleet
        self._gateways = gateways
        self._journal = journal
        self._devices = devices

    def status(self) -> Json:
        """The server, its processes, its models."""
        server, readiness = self._server, self._server.readiness()
        http = server.addresses.get("http", "")
        gateways = [{"pid": _pid(each), "generation": each.generation, "http": http} for each in self._gateways.seats]
        return {
            "version": mmsup.__version__,
            "ready": readiness.ready,
            "reason": readiness.reason,
            "uptime_s": round(time.monotonic() - server.started_s, 1),
            "isolation": server.isolation,
            "addresses": {name: address for name, address in server.addresses.items() if name != "control"},
            "keeper": {"pid": server.keeper_pid},
            "brain": {"pid": server.controller_pid, "generation": server.controller_generation},
            "gateways": gateways,
            "spare_gateways": self._gateways.standby.counts(),
            "devices": self._devices(),
            "models": [_status_of(model) for model in self._models()],
        }

    def overview(self) -> Json:
        """All models, one row each."""
        return {"models": [_row_of(model) for model in self._models()]}

    def ps(self) -> Json:
        """All processes, one row each."""
        server = self._server
        now_s = time.monotonic()
        rows = [
            _process("keeper", 0, server.keeper_pid, 1, server.started_s),
            _process("brain", 0, server.controller_pid, server.controller_generation, None),
        ]
        for gateway in self._gateways.processes():
            row = _process("gateway", gateway.number, _pid(gateway), gateway.generation, gateway.spawned_s)
            rows.append(row | {"state": _state_of(gateway)})
        for model in self._models():
            rows += [_worker_row(each, now_s) for each in model.instances() if each.process is not None]
        return {"processes": rows}

    def show(self, model: Model) -> Json:
        """Everything about one model."""
        edition = model.active
        releases = edition.versions if edition else []
        metadata = next((each.metadata for each in reversed(releases) if each.metadata), None)
        instances = list(model.instances())
        stories = [event for each in instances for event in self._journal.recent(each.id)]
        return {
            "name": model.name,
            "wanted": "up" if model.wanted else "down",
            "state": str(model.state()),
            "reason": model.reason(),
            "specs": [asdict(each.spec) for each in releases],
            "metadata": asdict(metadata) if metadata else None,
            "instances": [_instance(each) for each in instances],
            "faults": [asdict(each) for each in (*model.entry.errors, *model.entry.warnings)] if model.entry else [],
            "story": sorted(stories, key=lambda each: str(each["time"])) or self._journal.last(12, model.name),
        }

    def index(self, *, only_ready: bool) -> list[Json]:
        """Triton's repository index: one row for each version, or for a model that has none."""
        rows = [row for model in self._models() for row in _index_rows(model)]
        return [row for row in rows if row.get("state") == "READY"] if only_ready else rows

    def _models(self) -> list[Model]:
        return [self._fleet.models[name] for name in sorted(self._fleet.models)]


def _status_of(model: Model) -> Json:
    releases = model.active.versions if model.active else []
    return {
        "name": model.name,
        "state": str(model.state()),
        "reason": model.reason(),
        "versions": {each.spec.version: str(state_of(each)) for each in releases},
        "instances": [_instance(each) for each in model.instances()],
    }


def _row_of(model: Model) -> Json:
    status = _status_of(model)
    specs = (
        [each.spec for each in model.active.versions]
        if model.active
        else list(model.entry.specs if model.entry else ())
    )
    return {
        "name": model.name,
        "wanted": "up" if model.wanted else "down",
        "state": status["state"],
        "reason": status["reason"],
        "engine": ", ".join(sorted({each.engine for each in specs})),
        "versions": status["versions"],
        "instances": len(status["instances"]),
    }


def _instance(instance: Instance) -> Json:
    return {
        "id": instance.id,
        "version": instance.revision.spec.version,
        "pid": instance.process.pid if instance.process else None,
        "generation": instance.generation,
        "state": str(instance.state),
        "restarts": max(instance.generation - 1, 0),
        "memory_bytes": _memory_bytes(instance),
    }


def _memory_bytes(instance: Instance) -> int | None:
    """What the kernel counts of the life's group, else what it holds itself."""
    if instance.worker is None or instance.process is None:
        return None
    reading = instance.worker.group.read()
    return reading.usage_bytes if reading else usage.resident_bytes(instance.process.pid)


def _process(role: str, number: int, pid: int | None, generation: int, began_s: float | None) -> Json:
    return {
        "role": role,
        "id": number,
        "model": "",
        "version": "",
        "pid": pid,
        "generation": generation,
        "state": "ready",
        "restarts": max(generation - 1, 0),
        "memory_bytes": usage.resident_bytes(pid) if pid else None,
        "memory_cap_bytes": None,
        "uptime_s": round(time.monotonic() - began_s, 1) if began_s is not None else None,
        "requests": None,
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
    for each in model.route().versions:
        state = _INDEX_STATES.get(InstanceState(each.state), "UNAVAILABLE")
        reason = "" if state == "READY" else f"{each.state}: {each.reason}" if each.reason else each.state
        yield {"name": model.name, "version": each.version, "state": state, "reason": reason}


def _state_of(gateway: GatewayProcess) -> str:
    if gateway.is_standby_ready:
        return "spare"
    if not gateway.synced:
        return "starting"
    return "ready" if gateway.respawns else "draining"


def _pid(gateway: GatewayProcess) -> int | None:
    return gateway.process.pid if gateway.process is not None else None
