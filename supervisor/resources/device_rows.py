"""The status of every GPU: memory, who holds it, what keeps workers to their share, whether it is set aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmsup.supervisor.gpu.health import GpuHealth
from mmsup.supervisor.gpu.inventory import Gpus
from mmsup.supervisor.gpu.memory_rings import memory_rings
from mmsup.supervisor.gpu.monitor import GpuMonitor
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.resources.gpu_limits import ring_facts

Json = dict[str, Any]  # one JSON object


def device_rows(monitor: GpuMonitor, health: GpuHealth, instances: Sequence[Instance], *, has_dmem: bool) -> list[Json]:
    """One for each device, then for each part of one, then for those set aside that NVML does not list."""
    gpus = monitor.gpus or Gpus(())
    numbers = {each.uuid: f"cuda:{number}" for number, each in enumerate(gpus.devices)}
    named = numbers | {each.uuid: each.uuid for each in gpus.parts}
    named |= {device: device for device in health.cordoned if device not in named}
    return [_row(monitor, health, instances, uuid, name, has_dmem=has_dmem) for uuid, name in named.items()]


def workers_on(instances: Sequence[Instance], uuid: str) -> list[Instance]:
    return [each for each in instances if each.worker is not None and each.worker.gpu.device == uuid]


def _row(
    monitor: GpuMonitor, health: GpuHealth, instances: Sequence[Instance], uuid: str, name: str, *, has_dmem: bool
) -> Json:
    known, seen = monitor.gpus.find(uuid) if monitor.gpus is not None else None, monitor.find(uuid)
    facts = ring_facts(answers=seen is not None, has_dmem=has_dmem)
    workers = workers_on(instances, uuid)
    held = [_holder(each) for each in workers]
    status = monitor.status(uuid)
    used = status["memory_used_bytes"]
    return {
        "device": name,
        "uuid": uuid,
        "part_of": known.card if known is not None else "",
        "set_aside": uuid in health.cordoned,
        "reason": health.cordoned.get(uuid, ""),
        "workers": len(workers),
        **status,
        "rings": list(memory_rings(known, facts)) if known is not None else [],
        "held_by": held,
        "held_by_others_bytes": max(used - sum(each["held_bytes"] for each in held), 0) if used is not None else None,
    }


def _holder(instance: Instance) -> Json:
    worker, spec = instance.require_worker(), instance.revision.spec
    return {
        "model": spec.name,
        "version": spec.version,
        "instance": instance.id,
        "pid": instance.process.pid if instance.process is not None else None,
        "held_bytes": worker.gpu.usage.held_bytes,
        "source": worker.gpu.usage.source,
        "gpu_memory_bytes": spec.gpu_memory_bytes,
    }
