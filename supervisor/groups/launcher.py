"""Asks the keeper for the process of a co-location group, and tells it what it is."""

from __future__ import annotations

import json
import os
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.worker_control import ConfigureWorker
from mmsup.ipc.paths import worker_name
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.groups.group_process import Place
from mmsup.supervisor.instances.actions import FILE_HEADROOM_BYTES
from mmsup.supervisor.instances.context import GroupMember, InstanceContext
from mmsup.supervisor.linux.cgroup import SERVING_WEIGHTS
from mmsup.supervisor.processes.launch_spec import host_spawn, scratch_dir, worker_spawn

GENERATION: Final = 1
"""Of every such process: each has a number of its own."""


def start(number: int, first: GroupMember, context: InstanceContext) -> Place:
    """Request one; OSError or NoGpu if there can be none."""
    spec, worker = first.spec, (number, GENERATION)
    failpoint("brain.host_scratch")
    os.makedirs(scratch_dir(context.launch_environment, worker), mode=0o700, exist_ok=True)
    failpoint("brain.host_group")
    group = context.cgroups.create(worker_name(*worker), spec.memory_bytes)
    group.set_cpu_weights(SERVING_WEIGHTS)
    device = context.devices.assign(first.worker[0], spec)
    method = context.starts.choose(spec, may_wait=True)
    spawn = worker_spawn(spec, worker, context.launch_environment, group.procs_files, device, method)
    note = json.dumps({"group": spec.group, "device": device})
    context.keeper.send(host_spawn(spawn, number, spec.group, note))
    failpoint("brain.host_said")
    return Place(number, spec.group, spec, group, device)


def place_of(number: int, note: str, context: InstanceContext) -> Place | None:
    """Of one that an earlier controller has started. What its members are they say themselves."""
    try:
        raw = json.loads(note)
        name, device = str(raw["group"]), str(raw["device"])
    except (ValueError, KeyError):
        return None
    group = context.cgroups.group(worker_name(number, GENERATION))
    return Place(number, name, ModelSpec("", "", "", "", "", ""), group, device)


def configuration(place: Place, context: InstanceContext) -> ConfigureWorker:
    is_capped = place.group.cap_bytes is not None
    return ConfigureWorker(
        wire_version=WIRE_VERSION,
        instance=place.number,
        generation=GENERATION,
        address="",
        spec=place.spec,
        data_limit_bytes=0 if is_capped else place.spec.memory_bytes or 0,
        file_limit_bytes=context.settings.arena_bytes + FILE_HEADROOM_BYTES,
        is_shared=True,
    )
