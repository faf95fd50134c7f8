"""Actions of lifecycle.py carried out on one instance. Each is short, and none waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.ipc.messages.worker_control import ConfigureWorker, StopWorker
from mmsup.ipc.paths import worker_name
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu.inventory import NoGpu
from mmsup.supervisor.instances import exit_evidence, lifecycle_events, liveness, stack_dump
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.instances.memory_sampler import sample
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.linux.cgroup import LOADING_WEIGHTS, SERVING_WEIGHTS, Cgroup
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import scratch_dir, worker_spawn, worker_token

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

KILL_BARRIER_S: Final = 0.02
"""How long a kill waits for the gateways to have answered for the condemned."""
UNLINK_LIMIT_S: Final = 0.5
"""How long a drain waits for them to have stopped routing."""
IN_TRANSIT_S: Final = 0.05
EXIT_LIMIT_S: Final = 2.0
"""One that says it leaves, or has crashed, is gone by then."""
FILE_HEADROOM_BYTES: Final = 64 << 20
"""Above the largest extent that a worker may be sent: RLIMIT_FSIZE counts memfds too."""


def perform(instance: Instance, action: lifecycle_events.Action) -> None:
    """Do what a step asked for."""
    match action:
        case lifecycle_events.QueueLoad():
            instance.is_queued = True
        case lifecycle_events.StartProcess():
            _start_process(instance)
        case lifecycle_events.AnnounceReady():
            _announce(instance)
        case lifecycle_events.RecordLoadFailure(code, text):
            _record_load_failure(instance, WorkerFailure(code, text, of_load=True))
        case lifecycle_events.StopRouting():
            instance.context.gateways.unlink(instance.worker_id)
        case lifecycle_events.StartDrain():
            instance.context.gateways.barrier(UNLINK_LIMIT_S, _for_this_worker(instance, _await_messages_in_transit))
        case lifecycle_events.Condemn(code, text):
            _condemn(instance, WorkerFailure(code, text))
        case lifecycle_events.ExpectExit():
            expect_exit(instance, EXIT_LIMIT_S, lifecycle_events.ExitOverdue())
        case lifecycle_events.Kill():
            _kill(instance)
        case lifecycle_events.RecordUnkillable():
            _record_unkillable(instance)
        case lifecycle_events.ScheduleRetry(after_s, probe):
            _schedule_retry(instance, after_s, probe)
        case lifecycle_events.CancelRetry():
            cancel_retry(instance)
        case lifecycle_events.RecordGivenUp(code, text):
            _give_up(instance, code, text)
        case lifecycle_events.Finish():
            instance.is_queued = False


def send_boot(instance: Instance) -> None:
    """Tell a fresh process what it is to become."""
    tenure, spec, settings = _worker(instance), instance.revision.spec, instance.context.settings
    assert tenure.process is not None, f"instance {instance.id} has no process yet"
    capped = tenure.group.cap_bytes is not None
    boot = ConfigureWorker(
        wire_version=WIRE_VERSION,
        instance=instance.id,
        generation=instance.generation,
        address=instance.context.zeromq_address(instance.worker_id),
        spec=spec,
        data_limit_bytes=0 if capped else spec.memory_bytes or 0,
        file_limit_bytes=settings.arena_bytes + FILE_HEADROOM_BYTES,
    )
    tenure.process.channel.send(encode(boot))
    failpoint("brain.boot_said")
    instance.apply(lifecycle_events.ProcessStarted())


def start_liveness_probe(instance: Instance, life: ChildProcess) -> None:
    """Begin to look at its progress."""
    tenure, spec = _worker(instance), instance.revision.spec
    if tenure.liveness_probe is not None:
        tenure.liveness_probe.close()
    limits = liveness.LivenessLimits(spec.hang_limit_s, spec.load_timeout_s, round(tenure.spawned_s * liveness.NS))

    def tell(verdict: liveness.Hung | liveness.LoadTimeout) -> None:
        if isinstance(verdict, liveness.Hung) or instance.state is InstanceState.READY:
            instance.apply(lifecycle_events.HangDetected(verdict.reason))
        else:
            instance.apply(lifecycle_events.LoadTimedOut(verdict.reason))

    tenure.liveness_probe = LivenessProbe(life, limits, tell)


def watch_oom(instance: Instance) -> None:
    """Begin to hear of its group's memory."""
    cap = instance.revision.spec.memory_bytes
    limit = f"cap {size_text(cap)}" if cap is not None else "no cap of its own"
    event = lifecycle_events.OutOfMemory(
        f"killed by the kernel for memory: {limit}; raise memory or lower max_batch_size"
    )
    _worker(instance).watch_oom(lambda: instance.apply(event))


def expect_exit(instance: Instance, limit_s: float, event: lifecycle_events.Event) -> None:
    """Unless this life has ended by then, the event."""
    tenure = _worker(instance)
    if tenure.exit_timer is not None:
        tenure.exit_timer.cancel()
    tenure.exit_timer = asyncio.get_running_loop().call_later(limit_s, _on_exit_overdue, instance, event)


def link_to_gateways(instance: Instance) -> None:
    """Let the gateways route to this life; the fleet calls it once its content is in force."""
    tenure = _worker(instance)
    tenure.group.set_cpu_weights(SERVING_WEIGHTS)
    tenure.is_linked = True
    instance.context.gateways.link(instance.endpoint())


def start_retry_timer(instance: Instance) -> None:
    """Let the next try come at its time."""
    cancel_retry(instance)
    after_s = max(instance.retry_at_s - time.monotonic(), 0.0)
    instance.retry_timer = asyncio.get_running_loop().call_later(after_s, instance.apply, lifecycle_events.RetryDue())


def cancel_retry(instance: Instance) -> None:
    """No next try."""
    if instance.retry_timer is not None:
        instance.retry_timer.cancel()
        instance.retry_timer = None


def report_progress(instance: Instance, text: str) -> None:
    """How far its load is, for those who wait for it."""
    instance.context.on_progress(instance, text)


def _start_process(instance: Instance) -> None:
    site, spec = instance.context, instance.revision.spec
    instance.is_queued = False
    instance.generation += 1
    instance.worker = WorkerProcess(Cgroup(()), time.monotonic())
    try:
        failpoint("brain.scratch")
        os.makedirs(scratch_dir(site.launch_environment, instance.worker_id), mode=0o700, exist_ok=True)
        failpoint("brain.group")
        group = site.cgroups.create(worker_name(*instance.worker_id), spec.memory_bytes)
        group.set_cpu_weights(LOADING_WEIGHTS)
        instance.worker.group = group
        visible = instance.worker.visible_devices = site.devices.assign(instance)
        message = worker_spawn(spec, instance.worker_id, site.launch_environment, group.procs_files, visible)
    except OSError as error:
        asyncio.get_running_loop().call_soon(instance.start_failed, error.strerror or str(error))
        return
    except NoGpu as error:
        asyncio.get_running_loop().call_soon(instance.start_failed, str(error), error.code)
        return
    site.keeper.send(message)
    failpoint("brain.spawn_said")
    instance.record("worker_spawn", f"life {instance.generation} is being started")


def _announce(instance: Instance) -> None:
    tenure = _worker(instance)
    tenure.ready_s = time.monotonic()
    sample(instance)
    instance.failure = None
    if tenure.process is not None:
        start_liveness_probe(instance, tenure.process)  # the one of the load may have said its last word already
    load_s = round(tenure.ready_s - tenure.spawned_s, 3)
    instance.record(
        "worker_ready", f"serves after {load_s} s", pid=tenure.process.pid if tenure.process else 0, load_s=load_s
    )
    failpoint("brain.ready")
    instance.context.devices.on_ready(instance)
    instance.context.on_ready(instance)


def _record_load_failure(instance: Instance, failure: WorkerFailure) -> None:
    instance.failure = _worker(instance).load_failure = failure
    name = "load_timeout" if failure.code == "load_timeout" else "load_failed"
    instance.record(name, failure.text, code=failure.code)


def _condemn(instance: Instance, judgement: WorkerFailure) -> None:
    tenure = _worker(instance)
    tenure.condemned = judgement
    sample(instance)
    said = exit_evidence.failure_for_callers(instance.revision.spec, judgement)
    instance.failure = WorkerFailure("model_restarting", said.text)
    if tenure.is_linked:
        instance.context.gateways.condemn(instance.worker_id, said)
    instance.record("worker_condemned", judgement.text, code=judgement.code)


def _on_exit_overdue(instance: Instance, event: lifecycle_events.Event) -> None:
    if instance.process is None or not instance.process.is_dead:  # else its exit is on its way, and says why
        instance.apply(event)


def _await_messages_in_transit(instance: Instance) -> None:
    """What the gateways sent last may still be on its way, over ZeroMQ even where nobody can see it."""
    stop = _for_this_worker(instance, _send_stop)
    _worker(instance).exit_timer = asyncio.get_running_loop().call_later(IN_TRANSIT_S, stop)


def _send_stop(instance: Instance) -> None:
    tenure = _worker(instance)
    if tenure.process is None or instance.state is not InstanceState.DRAINING:
        return
    tenure.stop_sent = True
    tenure.process.channel.send(encode(StopWorker()))
    failpoint("brain.stop_said")
    # No caller waits beyond its deadline, so a drain that lasts longer serves nobody.
    expect_exit(instance, instance.revision.spec.deadline_s, lifecycle_events.ExitOverdue())


def _kill(instance: Instance) -> None:
    tenure = _worker(instance)
    if not instance.situation.wanted and tenure.condemned is None and tenure.load_failure is None:
        tenure.killed_unwanted = True
    if tenure.is_linked:
        instance.context.gateways.barrier(KILL_BARRIER_S, _for_this_worker(instance, _send_sigkill))
    else:
        _send_sigkill(instance)
    expect_exit(instance, instance.context.settings.kill_limit_s, lifecycle_events.Unkillable())


def _send_sigkill(instance: Instance) -> None:
    tenure = _worker(instance)
    stack_dump.request(instance)
    if stack_dump.is_pending(tenure):
        again = _for_this_worker(instance, _send_sigkill)
        tenure.kill_timer = asyncio.get_running_loop().call_later(stack_dump.POLL_S, again)
        return
    if tenure.process is not None:
        instance.context.keeper.send(SignalChild(worker_token(*instance.worker_id), signal.SIGKILL, whole_session=True))
        failpoint("brain.kill_said")
        tenure.group.kill()


def _record_unkillable(instance: Instance) -> None:
    limit_s = instance.context.settings.kill_limit_s
    pid = instance.process.pid if instance.process else 0
    text = f"SIGKILL has not ended it within {limit_s:g} s: the kernel holds it, and nothing waits for it any more"
    instance.record("worker_quarantined", text, pid=pid)
    instance.context.devices.on_exit(instance)


def _schedule_retry(instance: Instance, after_s: float, probe: bool) -> None:
    instance.is_probe = probe
    instance.retry_at_s = time.monotonic() + after_s
    start_retry_timer(instance)
    if after_s > 0 and not probe:
        instance.record("backoff", f"next try in {after_s:.1f} s", delay_s=round(after_s, 3))


def _give_up(instance: Instance, code: str, text: str) -> None:
    last = instance.failure.text if instance.failure else ""
    instance.failure = WorkerFailure(
        code, f"{text}; the last one: {last}" if last else text, of_load=code == "model_failed"
    )
    instance.record("crash_loop" if code == "crash_loop" else "load_failed", f"given up: {text}", code=code)


def _for_this_worker(instance: Instance, act: Callable[[Instance], None]) -> Callable[[], None]:
    """The act, unless another life has begun, or none is there, when it comes to it."""
    key = instance.worker_id

    def act_if_same() -> None:
        if instance.worker is not None and instance.worker_id == key:
            act(instance)

    return act_if_same


def _worker(instance: Instance) -> WorkerProcess:
    assert instance.worker is not None, f"instance {instance.id} has no process in state {instance.state}"
    return instance.worker
