"""Performs the actions of the state machine on one instance. Each is short, and none waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.ipc.messages.worker_control import ConfigureWorker, StopWorker
from mmsup.ipc.paths import worker_name
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu.selection import NoGpu
from mmsup.supervisor.instances import lifecycle_events, liveness, model_moves, stack_dump, worker_exit
from mmsup.supervisor.instances.context import GroupMember, MemoryRefused, SharedProcess, WorkerFailure
from mmsup.supervisor.instances.instance import Instance, for_this_worker
from mmsup.supervisor.instances.lifecycle_events import InstanceState
from mmsup.supervisor.instances.liveness_probe import LivenessProbe
from mmsup.supervisor.instances.memory_sampler import sample
from mmsup.supervisor.instances.restart_policy import NOT_MENDED_BY_TIME
from mmsup.supervisor.instances.worker_process import OomWatch, WorkerProcess
from mmsup.supervisor.linux.cgroup import LOADING_WEIGHTS, SERVING_WEIGHTS, Cgroup
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.idle_start import IdleStart
from mmsup.supervisor.processes.launch_spec import IMPORT_LIMIT_S, scratch_dir, worker_spawn, worker_token

KILL_BARRIER_S: Final = 0.02
"""How long a kill waits for the gateways to have answered the requests of a condemned worker."""
UNLINK_LIMIT_S: Final = 0.5
"""How long a drain waits for the gateways to have stopped routing."""
IN_TRANSIT_S: Final = 0.05
"""How long a request that a gateway sent before may still be on its way over ZeroMQ, where nobody can see it."""
EXIT_LIMIT_S: Final = 2.0
"""How long a worker that reports that it leaves, or has crashed, has to exit."""
FILE_HEADROOM_BYTES: Final = 64 << 20
"""Above the largest extent that a worker may be sent: RLIMIT_FSIZE counts memfds too."""


def perform(instance: Instance, action: lifecycle_events.Action) -> None:
    match action:
        case lifecycle_events.QueueLoad():
            instance.is_queued = True
        case lifecycle_events.StartProcess():
            _start_process(instance)
        case lifecycle_events.AnnounceReady():
            _announce_ready(instance)
        case lifecycle_events.RecordLoadFailure():
            worker_exit.load_failed(instance, action)
        case lifecycle_events.StopRouting():
            instance.context.gateways.unlink(instance.worker_id)
        case lifecycle_events.StartDrain():
            instance.is_queued = False
            instance.context.gateways.barrier(UNLINK_LIMIT_S, for_this_worker(instance, _await_messages_in_transit))
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
            _record_given_up(instance, code, text)
        case lifecycle_events.Finish():
            instance.is_queued = False
        case _:
            model_moves.perform(instance, action)


def send_boot(instance: Instance) -> None:
    worker, spec = instance.require_worker(), instance.revision.spec
    assert worker.process is not None, f"instance {instance.id} has no process yet"
    if spec.device == "auto":  # decided by the GPU that the worker sees
        spec = replace(spec, device="cuda" if worker.gpu.device else "cpu")
    is_capped = worker.group.cap_bytes is not None
    configuration = ConfigureWorker(
        wire_version=WIRE_VERSION,
        instance=instance.id,
        generation=instance.generation,
        address=instance.zeromq_address(),
        spec=spec,
        data_limit_bytes=0 if is_capped else spec.memory_bytes or 0,
        file_limit_bytes=instance.context.settings.arena_bytes + FILE_HEADROOM_BYTES,
    )
    worker.process.channel.send(encode(configuration))
    failpoint("brain.boot_said")
    instance.apply(lifecycle_events.ProcessStarted())


def start_liveness_probe(instance: Instance, process: ChildProcess) -> None:
    """Watch the progress of its process; replaces an earlier probe."""
    worker, spec = instance.require_worker(), instance.revision.spec
    if worker.watches.liveness is not None:
        worker.watches.liveness.close()
    limits = liveness.LivenessLimits(
        spec.hang_limit_s,
        spec.load_timeout_s,
        round(worker.spawned_s * liveness.NS),
        spec.deadline_s,
        is_ready=instance.state not in lifecycle_events.STARTING_UP,
        slow_first_run=instance.revision.first_runs.may_be_slow,
    )

    def on_failure(found: liveness.Hung | liveness.LoadTimeout) -> None:
        if isinstance(found, liveness.Hung) or instance.state is InstanceState.READY:
            instance.apply(lifecycle_events.HangDetected(found.reason))
        else:
            instance.apply(lifecycle_events.LoadTimedOut(found.reason))

    worker.watches.liveness = LivenessProbe(
        process, limits, on_failure, worker.group.pids, instance.revision.first_runs
    )


def follow_start(instance: Instance, pid: int) -> None:
    """The process of its worker runs, or is taken over from the controller before, which may have let it start idle."""
    worker, idle = instance.require_worker(), instance.context.cgroups.idle
    if worker.watches.start is not None:
        worker.watches.start.pid = pid
    elif idle is not None:
        idle.release(worker.group)


def group_member(instance: Instance) -> GroupMember:
    """What the process of its co-location group knows of it."""
    worker_id = instance.worker_id

    def is_current() -> bool:
        return instance.worker is not None and instance.worker_id == worker_id

    def on_crash(code: str, text: str) -> None:
        if is_current():
            instance.apply(lifecycle_events.CrashReported(code, text))

    def on_start_failed(text: str) -> None:
        if is_current():
            worker_exit.start_failed(instance, text)

    on_oom = for_this_worker(instance, lambda of: of.apply(oom_event(of)))
    return GroupMember(worker_id, instance.revision.spec, on_crash, on_oom, on_start_failed)


def oom_event(instance: Instance) -> lifecycle_events.OutOfMemory:
    cap = instance.revision.spec.memory_bytes
    limit = f"cap {size_text(cap)}" if cap is not None else "no cap of its own"
    return lifecycle_events.OutOfMemory(
        f"killed by the kernel for memory: {limit}; raise memory or lower max_batch_size"
    )


def watch_oom(instance: Instance) -> None:
    worker, event = instance.require_worker(), oom_event(instance)
    if worker.shared is None:  # else its process watches, and says whose turn it was
        worker.watches.oom = OomWatch(worker.group, lambda: instance.apply(event))


def expect_exit(instance: Instance, limit_s: float, event: lifecycle_events.Event) -> None:
    """Apply the event if the worker has not exited within the limit; replaces an earlier expectation."""
    termination = instance.require_worker().termination
    if termination.exit_timer is not None:
        termination.exit_timer.cancel()
    termination.exit_timer = asyncio.get_running_loop().call_later(limit_s, _on_exit_overdue, instance, event)


def link_to_gateways(instance: Instance) -> None:
    """Let the gateways route to its worker; called when its revision is the active one."""
    worker = instance.require_worker()
    worker.group.set_cpu_weights(SERVING_WEIGHTS)
    worker.is_linked = True
    instance.context.gateways.link(instance.endpoint())


def start_retry_timer(instance: Instance) -> None:
    cancel_retry(instance)
    after_s = max(instance.retry.at_s - time.monotonic(), 0.0)
    instance.retry.timer = asyncio.get_running_loop().call_later(after_s, instance.apply, lifecycle_events.RetryDue())


def cancel_retry(instance: Instance) -> None:
    if instance.retry.timer is not None:
        instance.retry.timer.cancel()
        instance.retry.timer = None


def _start_process(instance: Instance) -> None:
    context, spec = instance.context, instance.revision.spec
    instance.is_queued = False
    instance.generation += 1
    worker = instance.worker = WorkerProcess(Cgroup(()), time.monotonic())
    if refusal := context.refuse_start():
        asyncio.get_running_loop().call_soon(worker_exit.start_failed, instance, refusal, "too_many_files")
        return
    try:
        if spec.group:
            _join_group(instance)
            return
        failpoint("brain.scratch")
        os.makedirs(scratch_dir(context.launch_environment, instance.worker_id), mode=0o700, exist_ok=True)
        failpoint("brain.group")
        group = context.cgroups.create(worker_name(*instance.worker_id), spec.memory_bytes)
        group.set_cpu_weights(LOADING_WEIGHTS)
        worker.group = group
        worker.gpu.device = context.devices.assign(instance.id, spec)
        instance.hooks.require_memory(instance)
        may_wait = instance.generation == 1 and spec.load_timeout_s > IMPORT_LIMIT_S
        start = context.starts.choose(spec, may_wait=may_wait)
        instance.start = start.text
        procs_files = _start_behind_others(instance, is_forked=bool(start.zygote))
        message = worker_spawn(
            spec, instance.worker_id, context.launch_environment, procs_files, worker.gpu.device, start
        )
        message = replace(message, env={**context.devices.limit(spec, worker.gpu.device, group), **message.env})
    except OSError as error:
        asyncio.get_running_loop().call_soon(worker_exit.start_failed, instance, error.strerror or str(error))
        return
    except NoGpu as error:
        asyncio.get_running_loop().call_soon(worker_exit.start_failed, instance, str(error), error.code)
        return
    except MemoryRefused as error:
        asyncio.get_running_loop().call_soon(worker_exit.start_failed, instance, str(error), error.code, error.advice)
        return
    context.keeper.send(message)
    failpoint("brain.spawn_said")
    instance.record("worker_spawn", f"generation {instance.generation} is being started")


def _join_group(instance: Instance) -> None:
    worker = instance.require_worker()
    worker.shared = shared = instance.context.groups.join(group_member(instance))
    worker.group, worker.gpu.device = shared.group, shared.device
    instance.hooks.require_memory(instance)
    instance.start = "in the process of its group"
    beside = ", ".join(shared.names_beside(instance.worker_id)) or "no other yet"
    group = instance.revision.spec.group
    instance.record("worker_spawn", f"generation {instance.generation} joins the process of group {group}: {beside}")


def _start_behind_others(instance: Instance, *, is_forked: bool) -> tuple[str, ...]:
    """Let its worker start idle, if there is an idle class and somebody to yield to, until it is ready or has waited
    for too long. Returns the control groups that its process has to join."""
    worker, idle = instance.require_worker(), instance.context.cgroups.idle
    group = worker.group  # not the worker: no reference cycle may keep the mapped status page alive
    bound_s = instance.hooks.start_bound_s(instance) if idle is not None else 0.0
    if idle is None or not bound_s:
        return group.procs_files
    if is_forked:
        worker.watches.start = IdleStart(bound_s, lambda: idle.release(group), enter=lambda: idle.enter(group))
        return group.procs_files
    worker.watches.start = IdleStart(bound_s, lambda: idle.release(group))
    return idle.admit(group)


def _announce_ready(instance: Instance) -> None:
    worker = instance.require_worker()
    worker.ready_s = time.monotonic()
    sample(instance)
    instance.failure = None
    if worker.process is not None:
        start_liveness_probe(instance, worker.process)  # that of the load may have reported already, and then is closed
    load_s = worker.load_s
    pid = worker.process.pid if worker.process else 0
    text = f"serves after {load_s} s"
    instance.record("worker_ready", text, pid=pid, load_s=load_s, start=instance.start)
    failpoint("brain.ready")
    instance.context.devices.on_ready(worker.gpu.device)
    instance.hooks.on_ready(instance)
    if worker.watches.start is not None:
        worker.watches.start.end()  # last: on cgroup v1 it takes some milliseconds


def _condemn(instance: Instance, failure: WorkerFailure) -> None:
    worker = instance.require_worker()
    worker.termination.condemned = failure
    sample(instance)
    for_callers = worker_exit.failure_for_callers(instance.revision.spec, failure)
    instance.failure = WorkerFailure("model_restarting", for_callers.text)
    if worker.is_linked:
        instance.context.gateways.condemn(instance.worker_id, for_callers)
    instance.record("worker_condemned", failure.text, code=failure.code)


def _on_exit_overdue(instance: Instance, event: lifecycle_events.Event) -> None:
    if instance.process is None or not instance.process.is_dead:  # else its exit is about to be reported, with a cause
        instance.apply(event)


def _await_messages_in_transit(instance: Instance) -> None:
    """Over a socket pair none is: what gateways sent before they answered the barrier lies there to be read."""
    if not instance.context.zeromq_address(instance.worker_id):
        _send_stop(instance)
        return
    stop = for_this_worker(instance, _send_stop)
    instance.require_worker().termination.exit_timer = asyncio.get_running_loop().call_later(IN_TRANSIT_S, stop)


def _send_stop(instance: Instance) -> None:
    worker = instance.require_worker()
    if worker.process is None or instance.state is not InstanceState.DRAINING:
        return
    worker.termination.stop_sent = True
    worker.process.channel.send(encode(StopWorker()))
    failpoint("brain.stop_said")
    # No caller waits beyond its deadline, so a longer drain would serve nobody.
    expect_exit(instance, instance.revision.spec.deadline_s, lifecycle_events.ExitOverdue())


def _kill(instance: Instance) -> None:
    worker = instance.require_worker()
    termination = worker.termination
    if not instance.situation.wanted and termination.condemned is None and termination.load_failure is None:
        termination.killed_unwanted = True
    if worker.shared is not None and not _ends_shared_process(instance, worker.shared):
        return
    if worker.is_linked:
        instance.context.gateways.barrier(KILL_BARRIER_S, for_this_worker(instance, _send_sigkill))
    else:
        _send_sigkill(instance)
    expect_exit(instance, instance.context.settings.kill_limit_s, lifecycle_events.Unkillable())


def _ends_shared_process(instance: Instance, shared: SharedProcess) -> bool:
    """Before the kill of a process that it shares. The others are told, unless it alone is to go: it is asked to leave
    then, which it does when its load has ended, and is killed with them if it does not."""
    worker = instance.require_worker()
    termination = worker.termination
    if termination.killed_unwanted and not termination.stop_sent and shared.names_beside(instance.worker_id):
        if worker.process is not None:
            termination.stop_sent = True
            worker.process.channel.send(encode(StopWorker()))
        expect_exit(instance, instance.revision.spec.load_timeout_s, lifecycle_events.ExitOverdue())
        return False
    stopped = WorkerFailure("", "it has not left" if termination.stop_sent else "it is not wanted any more")
    reason = termination.condemned or termination.load_failure or stopped
    shared.ending(instance.worker_id, reason.code, reason.text)
    return True


def _send_sigkill(instance: Instance) -> None:
    """SIGKILL, once a stack dump has come that was requested before."""
    worker = instance.require_worker()
    stack_dump.request(instance)
    if stack_dump.is_pending(worker):
        again = for_this_worker(instance, _send_sigkill)
        worker.termination.kill_timer = asyncio.get_running_loop().call_later(stack_dump.POLL_S, again)
        return
    instance.context.keeper.send(SignalChild(worker_token(*instance.worker_id), signal.SIGKILL, whole_session=True))
    failpoint("brain.kill_said")
    worker.group.kill()
    if worker.watches.start is not None:
        worker.watches.start.end()  # behind others it would take long to end


def _record_unkillable(instance: Instance) -> None:
    limit_s = instance.context.settings.kill_limit_s
    pid = instance.process.pid if instance.process else 0
    text = f"SIGKILL has not ended it within {limit_s:g} s: the kernel blocks it, and nothing waits for it any more"
    instance.record("worker_quarantined", text, pid=pid)
    worker_exit.release_gpu(instance)


def _schedule_retry(instance: Instance, after_s: float, is_probe: bool) -> None:
    instance.is_queued = False
    instance.retry.is_probe = is_probe
    instance.retry.at_s = time.monotonic() + after_s
    start_retry_timer(instance)
    if after_s > 0 and not is_probe:
        instance.record("backoff", f"next try in {after_s:.1f} s", delay_s=round(after_s, 3))


def _record_given_up(instance: Instance, code: str, text: str) -> None:
    last = instance.failure.text if instance.failure else ""
    whole = f"{last}; {text}" if code in NOT_MENDED_BY_TIME else f"{text}; the last one: {last}" if last else text
    detail = instance.failure.detail if instance.failure else ""
    instance.failure = WorkerFailure(code, whole, of_load=code != "crash_loop", detail=detail)
    instance.retry.at_s = 0.0  # until a probe is scheduled
    instance.record("crash_loop" if code == "crash_loop" else "load_failed", f"given up: {text}", code=code)
