"""Actions of lifecycle.py carried out on one instance. Each is short, and none waits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import handshake, keeper_control, worker_control
from mmsup.ipc.paths import life_name
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.gpu.inventory import NoGpu
from mmsup.supervisor.instances import exit_evidence, lifecycle_events, liveness, stack_dump
from mmsup.supervisor.instances.context import Judgement
from mmsup.supervisor.instances.lifecycle_events import State
from mmsup.supervisor.instances.liveness_probe import Watch
from mmsup.supervisor.instances.memory_sampler import sample
from mmsup.supervisor.instances.worker_process import Tenure
from mmsup.supervisor.linux.cgroup import LOADING, SERVING, Group
from mmsup.supervisor.processes.child_process import Life
from mmsup.supervisor.processes.launch_spec import scratch_of, worker_spawn, worker_token

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

BARRIER_S: Final = 0.02
"""How long a kill waits for the gateways to have answered for the condemned."""
UNROUTE_S: Final = 0.5
"""How long a drain waits for them to have stopped routing."""
ARRIVE_S: Final = 0.05
LEAVE_S: Final = 2.0
"""One that says it leaves, or has crashed, is gone by then."""
FILE_ROOM_BYTES: Final = 64 << 20
"""Above the largest extent that a worker may be sent: RLIMIT_FSIZE counts memfds too."""


def carry_out(instance: Instance, action: lifecycle_events.Action) -> None:
    """Do what a step asked for."""
    match action:
        case lifecycle_events.AskAdmission():
            instance.waiting = True
        case lifecycle_events.Spawn():
            _spawn(instance)
        case lifecycle_events.AnnounceReady():
            _announce(instance)
        case lifecycle_events.NoteLoadFailure(code, text):
            _note_load_failure(instance, Judgement(code, text, of_load=True))
        case lifecycle_events.Withdraw():
            instance.site.gateways.unlink(instance.key)
        case lifecycle_events.Drain():
            instance.site.gateways.barrier(UNROUTE_S, _for_this_life(instance, _let_arrive))
        case lifecycle_events.Condemn(code, text):
            _condemn(instance, Judgement(code, text))
        case lifecycle_events.ExpectExit():
            expect(instance, LEAVE_S, lifecycle_events.EndTimedOut())
        case lifecycle_events.Kill():
            _kill(instance)
        case lifecycle_events.NoteUnkillable():
            _note_unkillable(instance)
        case lifecycle_events.ScheduleRetry(after_s, probe):
            _schedule(instance, after_s, probe)
        case lifecycle_events.CancelRetry():
            cancel_retry(instance)
        case lifecycle_events.NoteGivenUp(code, text):
            _give_up(instance, code, text)
        case lifecycle_events.Finish():
            instance.waiting = False


def boot(instance: Instance) -> None:
    """Tell a fresh process what it is to become."""
    tenure, spec, settings = _tenure(instance), instance.release.spec, instance.site.settings
    assert tenure.life is not None, f"instance {instance.id} has no process yet"
    capped = tenure.group.cap_bytes is not None
    boot = worker_control.Boot(
        wire=handshake.WIRE_VERSION,
        instance=instance.id,
        generation=instance.generation,
        address=instance.site.link_address(instance.key),
        spec=spec,
        data_limit_bytes=0 if capped else spec.memory_bytes or 0,
        file_limit_bytes=settings.arena_bytes + FILE_ROOM_BYTES,
    )
    tenure.life.peer.say(encode(boot))
    faultpoint("brain.boot_said")
    instance.apply(lifecycle_events.Spawned())


def watch(instance: Instance, life: Life) -> None:
    """Begin to look at its progress."""
    tenure, spec = _tenure(instance), instance.release.spec
    if tenure.watch is not None:
        tenure.watch.close()
    limits = liveness.Limits(spec.hang_limit_s, spec.load_timeout_s, round(tenure.spawned_s * liveness.NS))

    def tell(verdict: liveness.Hung | liveness.LoadTimeout) -> None:
        if isinstance(verdict, liveness.Hung) or instance.state is State.READY:
            instance.apply(lifecycle_events.Hung(verdict.reason))
        else:
            instance.apply(lifecycle_events.LoadTimedOut(verdict.reason))

    tenure.watch = Watch(life, limits, tell)


def hear_oom(instance: Instance) -> None:
    """Begin to hear of its group's memory."""
    cap = instance.release.spec.memory_bytes
    limit = f"cap {size_text(cap)}" if cap is not None else "no cap of its own"
    event = lifecycle_events.OutOfMemory(
        f"killed by the kernel for memory: {limit}; raise memory or lower max_batch_size"
    )
    _tenure(instance).hear_oom(lambda: instance.apply(event))


def expect(instance: Instance, limit_s: float, event: lifecycle_events.Event) -> None:
    """Unless this life has ended by then, the event."""
    tenure = _tenure(instance)
    if tenure.end_timer is not None:
        tenure.end_timer.cancel()
    tenure.end_timer = asyncio.get_running_loop().call_later(limit_s, _has_not_ended, instance, event)


def link(instance: Instance) -> None:
    """Let the gateways route to this life; the fleet calls it once its content is in force."""
    tenure = _tenure(instance)
    tenure.group.compete(SERVING)
    tenure.linked = True
    instance.site.gateways.link(instance.serving())


def arm_retry(instance: Instance) -> None:
    """Let the next try come at its time."""
    cancel_retry(instance)
    after_s = max(instance.retry_at_s - time.monotonic(), 0.0)
    instance.retry_timer = asyncio.get_running_loop().call_later(after_s, instance.apply, lifecycle_events.RetryDue())


def cancel_retry(instance: Instance) -> None:
    """No next try."""
    if instance.retry_timer is not None:
        instance.retry_timer.cancel()
        instance.retry_timer = None


def say_progress(instance: Instance, text: str) -> None:
    """How far its load is, for those who wait for it."""
    instance.site.progress(instance, text)


def _spawn(instance: Instance) -> None:
    site, spec = instance.site, instance.release.spec
    instance.waiting = False
    instance.generation += 1
    instance.tenure = Tenure(Group(()), time.monotonic())
    try:
        faultpoint("brain.scratch")
        os.makedirs(scratch_of(site.place, instance.key), mode=0o700, exist_ok=True)
        faultpoint("brain.group")
        group = site.cgroups.make(life_name(*instance.key), spec.memory_bytes)
        group.compete(LOADING)
        instance.tenure.group = group
        visible = instance.tenure.visible_devices = site.devices.place(instance)
        message = worker_spawn(spec, instance.key, site.place, group.procs_files, visible)
    except OSError as error:
        asyncio.get_running_loop().call_soon(instance.unborn, error.strerror or str(error))
        return
    except NoGpu as error:
        asyncio.get_running_loop().call_soon(instance.unborn, str(error), error.code)
        return
    site.keeper.say(message)
    faultpoint("brain.spawn_said")
    instance.record("worker_spawn", f"life {instance.generation} is being started")


def _announce(instance: Instance) -> None:
    tenure = _tenure(instance)
    tenure.ready_s = time.monotonic()
    sample(instance)
    instance.trouble = None
    if tenure.life is not None:
        watch(instance, tenure.life)  # the one of the load may have said its last word already
    load_s = round(tenure.ready_s - tenure.spawned_s, 3)
    instance.record(
        "worker_ready", f"serves after {load_s} s", pid=tenure.life.pid if tenure.life else 0, load_s=load_s
    )
    faultpoint("brain.ready")
    instance.site.devices.serves(instance)
    instance.site.ready(instance)


def _note_load_failure(instance: Instance, failure: Judgement) -> None:
    instance.trouble = _tenure(instance).failed = failure
    name = "load_timeout" if failure.code == "load_timeout" else "load_failed"
    instance.record(name, failure.text, code=failure.code)


def _condemn(instance: Instance, judgement: Judgement) -> None:
    tenure = _tenure(instance)
    tenure.judgement = judgement
    sample(instance)
    said = exit_evidence.said_to_callers(instance.release.spec, judgement)
    instance.trouble = Judgement("model_restarting", said.text)
    if tenure.linked:
        instance.site.gateways.condemn(instance.key, said)
    instance.record("worker_condemned", judgement.text, code=judgement.code)


def _has_not_ended(instance: Instance, event: lifecycle_events.Event) -> None:
    if instance.life is None or not instance.life.dead:  # else its exit is on its way, and says why
        instance.apply(event)


def _let_arrive(instance: Instance) -> None:
    """What the gateways sent last may still be on its way, over ZeroMQ even where nobody can see it."""
    stop = _for_this_life(instance, _tell_to_stop)
    _tenure(instance).end_timer = asyncio.get_running_loop().call_later(ARRIVE_S, stop)


def _tell_to_stop(instance: Instance) -> None:
    tenure = _tenure(instance)
    if tenure.life is None or instance.state is not State.DRAINING:
        return
    tenure.told_to_leave = True
    tenure.life.peer.say(encode(worker_control.Stop()))
    faultpoint("brain.stop_said")
    # No caller waits beyond its deadline, so a drain that lasts longer serves nobody.
    expect(instance, instance.release.spec.deadline_s, lifecycle_events.EndTimedOut())


def _kill(instance: Instance) -> None:
    tenure = _tenure(instance)
    if not instance.situation.wanted and tenure.judgement is None and tenure.failed is None:
        tenure.dropped = True
    if tenure.linked:
        instance.site.gateways.barrier(BARRIER_S, _for_this_life(instance, _signal))
    else:
        _signal(instance)
    expect(instance, instance.site.settings.kill_limit_s, lifecycle_events.Unkillable())


def _signal(instance: Instance) -> None:
    tenure = _tenure(instance)
    stack_dump.ask(instance)
    if stack_dump.is_awaited(tenure):
        again = _for_this_life(instance, _signal)
        tenure.kill_timer = asyncio.get_running_loop().call_later(stack_dump.LOOK_S, again)
        return
    if tenure.life is not None:
        instance.site.keeper.say(keeper_control.Signal(worker_token(*instance.key), signal.SIGKILL, group=True))
        faultpoint("brain.kill_said")
        tenure.group.kill()


def _note_unkillable(instance: Instance) -> None:
    limit_s = instance.site.settings.kill_limit_s
    pid = instance.life.pid if instance.life else 0
    text = f"SIGKILL has not ended it within {limit_s:g} s: the kernel holds it, and nothing waits for it any more"
    instance.record("worker_quarantined", text, pid=pid)
    instance.site.devices.ended(instance)


def _schedule(instance: Instance, after_s: float, probe: bool) -> None:
    instance.probe = probe
    instance.retry_at_s = time.monotonic() + after_s
    arm_retry(instance)
    if after_s > 0 and not probe:
        instance.record("backoff", f"next try in {after_s:.1f} s", delay_s=round(after_s, 3))


def _give_up(instance: Instance, code: str, text: str) -> None:
    last = instance.trouble.text if instance.trouble else ""
    instance.trouble = Judgement(
        code, f"{text}; the last one: {last}" if last else text, of_load=code == "model_failed"
    )
    instance.record("crash_loop" if code == "crash_loop" else "load_failed", f"given up: {text}", code=code)


def _for_this_life(instance: Instance, act: Callable[[Instance], None]) -> Callable[[], None]:
    """The act, unless another life has begun, or none is there, when it comes to it."""
    key = instance.key

    def act_if_same() -> None:
        if instance.tenure is not None and instance.key == key:
            act(instance)

    return act_if_same


def _tenure(instance: Instance) -> Tenure:
    assert instance.tenure is not None, f"instance {instance.id} has no process in state {instance.state}"
    return instance.tenure
