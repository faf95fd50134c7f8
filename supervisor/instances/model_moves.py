"""Performs the actions by which a worker's model leaves the memory that it serves from, and comes back.

The process stays: its interpreter, its libraries, its context on a device. Routing is as in a drain before the one, and
as after a load behind the other.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.worker_control import OffloadModel, RestoreModel
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.context import MemoryRefused, WorkerFailure
from mmsup.supervisor.instances.instance import Instance, for_this_worker
from mmsup.supervisor.instances.lifecycle_events import InstanceState

UNLINK_LIMIT_S: Final = 0.5
"""How long a move waits for the gateways to have stopped routing."""


def perform(instance: Instance, action: lifecycle_events.Action) -> None:
    match action:
        case lifecycle_events.StartOffload():
            instance.context.gateways.barrier(UNLINK_LIMIT_S, for_this_worker(instance, _send_offload))
        case lifecycle_events.AnnounceOffloaded(took_s, freed_bytes):
            _announce_offloaded(instance, took_s, freed_bytes)
        case lifecycle_events.StartRestore():
            _start_restore(instance)
        case lifecycle_events.AnnounceRestored(took_s):
            _announce_restored(instance, took_s)
        case lifecycle_events.RecordMoveFailure(is_restore, text, detail):
            _record_failure(instance, text, detail, is_restore=is_restore)
        case _:
            raise AssertionError(f"nobody performs {action}")


def send_again(instance: Instance) -> None:
    """A controller before this one has sent it, or was about to. A worker that has done it already says so."""
    if instance.state is InstanceState.RESTORING:
        _send(instance, RestoreModel())
    elif instance.state in lifecycle_events.OFFLOADABLE:
        instance.context.gateways.barrier(UNLINK_LIMIT_S, for_this_worker(instance, _send_offload))


def _send_offload(instance: Instance) -> None:
    if instance.state in lifecycle_events.OFFLOADABLE:  # else it is to end, and was told so
        _send(instance, OffloadModel())


def _start_restore(instance: Instance) -> None:
    instance.is_queued = False
    try:
        instance.hooks.require_memory(instance)
    except MemoryRefused as error:
        text = f"its model does not fit where it was: {error}; its worker is ended, and the model loaded when it fits"
        instance.record("restore_refused", text)
        loop = asyncio.get_running_loop()
        loop.call_soon(for_this_worker(instance, lambda of: of.apply(lifecycle_events.RestoreRefused())))
        return
    _send(instance, RestoreModel())


def _send(instance: Instance, message: OffloadModel | RestoreModel) -> None:
    worker = instance.require_worker()
    assert worker.process is not None, f"instance {instance.id} was ready without a process"
    worker.process.channel.send(encode(message))
    failpoint("brain.move_said")
    _stop_timer(instance)
    limit_s = instance.revision.spec.load_timeout_s
    overdue = for_this_worker(instance, lambda of: of.apply(lifecycle_events.ExitOverdue()))
    worker.termination.exit_timer = asyncio.get_running_loop().call_later(limit_s, overdue)


def _announce_offloaded(instance: Instance, took_s: float, freed_bytes: int) -> None:
    worker = instance.require_worker()
    _stop_timer(instance)
    worker.is_linked = False
    gpu = worker.gpu
    gpu.offloaded_bytes = min(freed_bytes, gpu.usage.held_bytes)  # until its device is asked again
    gpu.usage = replace(gpu.usage, held_bytes=gpu.usage.held_bytes - gpu.offloaded_bytes)
    freed = f", {size_text(freed_bytes)} of its device are free" if freed_bytes else ""
    text = f"its model was moved to host memory in {took_s:.3f} s{freed}"
    instance.record("worker_offloaded", text, took_s=round(took_s, 3), freed_bytes=freed_bytes)
    failpoint("brain.offloaded")
    instance.context.devices.on_ready(gpu.device)
    instance.hooks.on_moved(instance, took_s)


def _announce_restored(instance: Instance, took_s: float) -> None:
    worker = instance.require_worker()
    _stop_timer(instance)
    gpu = worker.gpu
    gpu.usage = replace(gpu.usage, held_bytes=gpu.usage.held_bytes + gpu.offloaded_bytes)
    gpu.offloaded_bytes = 0
    instance.revision.restored_s = time.monotonic()
    instance.record("worker_restored", f"serves again: its model was back in {took_s:.3f} s", took_s=round(took_s, 3))
    failpoint("brain.moved_back")
    instance.context.devices.on_ready(gpu.device)
    instance.context.crash_collector.on_relinked(instance.worker_id)
    instance.hooks.on_moved(instance, took_s)
    instance.hooks.on_ready(instance)


def _record_failure(instance: Instance, text: str, detail: str, *, is_restore: bool) -> None:
    what = "restored from" if is_restore else "moved to"
    whole = f"its model could not be {what} host memory: {text}"
    if instance.worker is not None:
        instance.worker.termination.move_failure = whole
    instance.failure = WorkerFailure("model_restarting", whole, detail=detail)
    instance.record("restore_failed" if is_restore else "offload_failed", instance.failure.operator_text)
    instance.hooks.on_move_failed(instance, whole)


def _stop_timer(instance: Instance) -> None:
    termination = instance.require_worker().termination
    if termination.exit_timer is not None:
        termination.exit_timer.cancel()
        termination.exit_timer = None
