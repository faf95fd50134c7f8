"""The exit of a worker process: collects the evidence, sends the gateways the verdict, then records what follows.

Callers wait for the verdict, so `exited` first does only what decides it; output, event, crash report and cleanup come
after it has been sent. Decided elsewhere: the cause (postmortem/cause.py), the next try (restart_policy.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import RUNNING, Activity, Progress
from mmsup.ipc.messages.keeper_control import ChildExited, ForgetChild
from mmsup.ipc.paths import WorkerId, worker_socket
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.instances import restart_policy
from mmsup.supervisor.instances.context import WorkerFailure
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.lifecycle_events import ProcessExited, RecordLoadFailure, StartFailed
from mmsup.supervisor.instances.restart_policy import PROBE_AFTER_S, GiveUp, NextTry, Retry
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.postmortem.cause import Cause, Evidence, cause_of
from mmsup.supervisor.postmortem.crash_report import CrashRecord
from mmsup.supervisor.postmortem.in_flight import InFlightSummary
from mmsup.supervisor.postmortem.stack_trace import FATAL_PREFIX
from mmsup.supervisor.processes.backoff import Exit
from mmsup.supervisor.processes.child_process import ChildProcess
from mmsup.supervisor.processes.launch_spec import scratch_dir, worker_token

TAIL_LINES: Final = 20
"""Lines of output in the event; the crash report has more."""
TAIL_CHARACTERS: Final = 2000
LAST_LINE_CHARACTERS: Final = 300
"""Of the last line of output in the reason of a failed load."""
_NO_DEATHS: Final = (exit_codes.LOAD_FAILED, exit_codes.NO_WORKER_MODULES)
"""Exit statuses of workers that leave because their model cannot be loaded, also the next time."""


@dataclass(frozen=True, slots=True)
class WorkerExit:
    cause: Cause
    evidence: Evidence
    progress: Progress | None = None
    """The status page at the end."""
    dump_requested_s: float = 0.0
    """When the server asked it for its stacks; 0: never."""

    @property
    def executing(self) -> bool:
        return self.progress is not None and self.progress.activity in RUNNING

    @property
    def failure(self) -> WorkerFailure:
        """For the callers of requests in flight."""
        return WorkerFailure(self.cause.code, self.cause.text, self.cause.retryable)

    def with_details(self, process: ChildProcess | None, tail: Sequence[str]) -> WorkerExit:
        """With the status page, the output of faulthandler and the last lines of output. They do not change the cause,
        only its details."""
        crash = ""
        if process is not None:
            was_requested = 0 < self.dump_requested_s < process.crash.read_s
            crash = stack_trace.of_death(process.crash.text, was_requested=was_requested)
        evidence = replace(self.evidence, crash=crash, tail=tuple(line[:TAIL_CHARACTERS] for line in tail))
        progress = process.progress() if process is not None else None
        return replace(self, cause=cause_of(evidence), evidence=evidence, progress=progress)

    def event_fields(self) -> dict[str, Any]:  # JSON
        """For the event log, beside `cause.detail`."""
        evidence = self.evidence
        return {
            "pid": evidence.pid,
            "cause": self.cause.word,
            "sig": evidence.signal,
            "status": evidence.status,
            "oom": evidence.oom_kills > 0,
            "oom_kills": evidence.oom_kills,
            "cap_bytes": evidence.cap_bytes,
            "peak_bytes": evidence.peak_bytes or None,
            "in_flight": evidence.in_flight,
            "executing": self.executing,
            "tail": list(evidence.tail[-TAIL_LINES:]),
        }


def start_failed(instance: Instance, text: str, code: str = "load_failed", detail: str = "") -> None:
    """The process could not be started. If it is for want of room or of a GPU, as `code` then says, the failure does
    not count toward the limits of the restart policy: it is tried again when there is one, at the latest after 300 s.
    `detail` is for the operator alone."""
    what = f"the worker could not be started: {text}"
    instance.failure = WorkerFailure(code, what, of_load=True, detail=detail, was_started=False)
    instance.record("load_failed", instance.failure.operator_text, code=code)
    decision = _next_try(instance, served_s=0.0) if code == "load_failed" else Retry(PROBE_AFTER_S)
    _clean_up(instance)
    instance.apply(StartFailed(decision))


def exited(instance: Instance, message: ChildExited) -> None:
    worker, context = instance.require_worker(), instance.context
    failpoint("brain.ended")
    process = worker.process
    if process is not None:
        process.channel.drain()  # what it sent before its end is evidence
        worker.infer_ready()
    worker_id = instance.worker_id
    lost = context.crash_collector.in_flight(worker_id)
    in_flight = lost.in_flight if lost.is_complete or not worker.is_linked else None
    found = collect(instance.revision.spec, worker_id, worker, message, in_flight)
    if worker.is_linked:
        context.gateways.verdict(worker_id, found.failure)
    if process is not None:
        process.drain_and_close()
    tail = context.model_output(instance.revision.spec.name).finish(f"{instance.id}.{instance.generation}")
    if worker.termination.was_requested(message):
        instance.record("worker_stopped", "stopped as requested", pid=message.pid)
        decision: NextTry = Retry(0.0)
    else:
        decision = _record_crash(instance, worker, found.with_details(process, tail), lost)
    context.keeper.send(ForgetChild(message.token))
    failpoint("brain.buried")
    _clean_up(instance)
    instance.apply(ProcessExited(decision))


def leaving(instance: Instance) -> Activity | None:
    """Of a member of a co-location group whose process goes on: STOPPING while it is unloaded, LEFT afterwards."""
    worker = instance.worker
    if worker is None or worker.shared is None or worker.process is None or worker.process.is_dead:
        return None
    activity = worker.process.progress().activity
    return activity if activity in (Activity.STOPPING, Activity.LEFT) else None


def left(instance: Instance, generation: int) -> None:
    """A member of a co-location group has left its process, after StopWorker or a failed load. The process goes on."""
    worker = instance.worker
    if worker is None or worker.process is None or instance.generation != generation or worker.process.is_dead:
        return  # its exit is reported by the keeper
    failpoint("brain.member_left")
    failed = worker.termination.load_failure is not None
    status = exit_codes.LOAD_FAILED if failed or not worker.termination.stop_sent else exit_codes.SUCCESS
    exited(instance, ChildExited(worker_token(*instance.worker_id), worker.process.pid, status, 0))


def vanished(instance: Instance) -> None:
    """The process is gone and its exit unknown: it was reported to an earlier controller, which has died since."""
    _clean_up(instance)
    instance.apply(ProcessExited(Retry(0.0)))


def collect(
    spec: ModelSpec, worker_id: WorkerId, worker: WorkerProcess, message: ChildExited, in_flight: int | None
) -> WorkerExit:
    """The evidence of an exit, without details. Reads the control group, which exists until the cleanup. `in_flight`:
    requests that were with the worker, if all gateways have reported."""
    reading = worker.group.read()
    termination = worker.termination
    condemned, failed = termination.condemned, termination.load_failure
    timed_out = failed is not None and failed.code == "load_timeout"
    killed_for = failed if timed_out else condemned
    is_dead = worker.process is None or worker.process.is_dead  # else it has left a process that goes on
    evidence = Evidence(
        worker=f"{spec.name}/{spec.version}",
        pid=message.pid,
        status=message.status,
        signal=message.signal,
        ready=worker.ready_s > 0,
        oom_kills=reading.oom_kills if reading else 0,
        counts_oom=reading is not None,
        cap_bytes=worker.group.cap_bytes or spec.memory_bytes,
        peak_bytes=reading.peak_bytes if reading else 0,
        in_flight=in_flight,
        load_failed_code=failed.code if failed and not timed_out else "",
        load_failed_text=failed.text if failed else "",
        condemned_code=killed_for.code if killed_for else "",
        condemned_text=failed.text if failed else condemned.text if condemned else "",
        move_failed_text=termination.move_failure,
        stop_requested=termination.stop_sent or termination.killed_unwanted,
        ended_by=worker.shared.ended_by(worker_id) if worker.shared is not None else "",
        shared_with=worker.shared.names_beside(worker_id) if worker.shared is not None and is_dead else (),
    )
    return WorkerExit(cause_of(evidence), evidence, dump_requested_s=termination.dump_requested_s)


def crash_record(
    instance: Instance, found: WorkerExit, time_text: str, next_delay_s: float | None, given_up: str
) -> CrashRecord:
    """What the controller contributes to the crash report; `time_text` is the time of the `worker_exit` event."""
    worker, now_s = instance.require_worker(), time.monotonic()
    return CrashRecord(
        time=time_text,
        spec=instance.revision.spec,
        instance=instance.id,
        generation=instance.generation,
        cause=found.cause,
        evidence=found.evidence,
        progress=found.progress,
        ended_ns=round(now_s * 1e9),
        is_linked=worker.is_linked,
        lived_s=now_s - worker.spawned_s,
        served_s=now_s - worker.ready_s if worker.ready_s else 0.0,
        in_group=worker.group.folder is not None,
        memory_samples=worker.memory_history.rows(now_s),
        recent_events=instance.context.event_log.recent(instance.id),
        transitions=tuple(instance.transitions),
        next_delay_s=next_delay_s,
        given_up=given_up,
    )


def crash_summary(crash: str) -> tuple[str, str]:
    """Error code and text for callers from the start of a faulthandler dump: no frame, no path."""
    first = crash.strip().splitlines()[0] if crash.strip() else ""
    error = first.removeprefix(FATAL_PREFIX)[:100] if first.startswith(FATAL_PREFIX) else "a fatal signal"
    return "worker_sigbus" if error.startswith("Bus error") else "worker_crashed", f"it crashed: {error}"


def failure_for_callers(spec: ModelSpec, failure: WorkerFailure) -> WorkerFailure:
    """Why a worker is condemned, as the callers of its requests get it."""
    # Clients look for these words where a deadline, theirs or the worker's, has passed.
    head = "Request timeout expired: " if failure.code == "worker_hung" else ""
    text = f"{head}worker {spec.name}/{spec.version} is being ended: {failure.text}"
    return WorkerFailure(failure.code, text, failure.retryable)


def load_failed(instance: Instance, found: RecordLoadFailure) -> None:
    """The worker has reported why its load failed, or is about to be killed for that."""
    retryable = found.is_death and instance.revision.spec.memory_bytes is None
    failure = WorkerFailure(found.code, found.text, retryable, of_load=True, detail=found.detail)
    instance.require_worker().termination.load_failure = failure
    instance.failure = _as_first_death(instance, failure) if found.is_death else failure
    name = "load_timeout" if failure.code == "load_timeout" else "load_failed"
    instance.record(name, failure.operator_text, code=failure.code)


def _as_first_death(instance: Instance, failure: WorkerFailure) -> WorkerFailure:
    """The failure of a load that ended with its process. Where requests wait for that load it is tried once more before
    they are told, and they wait as for a restart."""
    version = instance.revision
    is_awaited = instance.hooks.is_awaited(instance)
    if not restart_policy.is_tried_once_more(version.exits, len(version.instances), is_awaited=is_awaited):
        return failure
    instance.report_progress(f"{failure.text}; it is loaded once more")
    return WorkerFailure("model_restarting", failure.text)


def _load_death(instance: Instance, found: WorkerExit) -> WorkerFailure:
    """Why a worker that had not become ready, and has reported nothing, has exited."""
    evidence = found.evidence
    last = f"the last line that it printed: {evidence.tail[-1][:LAST_LINE_CHARACTERS]}" if evidence.tail else ""
    if not evidence.signal and evidence.status in _NO_DEATHS:
        return replace(found.failure, retryable=False, of_load=True, detail=last)
    retryable = not evidence.oom_kills or evidence.cap_bytes is None  # its own cap is there the next time too
    return _as_first_death(instance, replace(found.failure, retryable=retryable, of_load=True, detail=last))


def release_gpu(instance: Instance) -> None:
    """Expect the GPU memory of its worker back."""
    worker = instance.worker
    if worker is not None and worker.process is not None and worker.gpu.device and worker.gives_device_back:
        instance.context.devices.on_exit(worker.gpu.device, worker.process.pid, worker.gpu.usage)


def _record_crash(instance: Instance, worker: WorkerProcess, found: WorkerExit, lost: InFlightSummary) -> NextTry:
    """Decides what follows an exit that nobody requested, writes its event and hands over its crash report."""
    load_failure = worker.termination.load_failure
    if not worker.ready_s and load_failure is None and not found.evidence.ended_by:
        instance.failure = _load_death(instance, found)
    elif load_failure is None:
        instance.failure = WorkerFailure("model_restarting", found.failure.text)
    decision: NextTry = Retry(0.0)  # it has not brought that about
    if not found.evidence.ended_by:
        decision = _next_try(instance, time.monotonic() - worker.ready_s if worker.ready_s else 0.0)
        others = found.evidence.shared_with
        in_load = worker.shared is not None and worker.shared.is_blamed(instance.worker_id) and not worker.ready_s
        decision = restart_policy.beside_others(decision, others, ended_in_load=in_load)
    delay_s = round(decision.after_s, 3) if isinstance(decision, Retry) else None
    event = instance.record(
        "worker_exit",
        found.cause.detail,
        **found.event_fields(),
        requests=lost.ids(),
        restart=instance.generation,
        next_delay_s=delay_s,
    )
    given_up = decision.reason if isinstance(decision, GiveUp) else ""
    record = crash_record(instance, found, event["time"], delay_s, given_up)
    if not found.evidence.ended_by:
        instance.context.crash_collector.collect(record, lost, worker.artifact_digest)
    if found.cause.code == "gpu_fault":
        instance.context.devices.on_fault(worker.gpu.device, instance.revision.spec.name)
    return decision


def _next_try(instance: Instance, served_s: float) -> NextTry:
    last = Exit(time.monotonic(), served_s, instance.retry.is_probe)
    instance.retry.is_probe = False
    failed = instance.worker.termination.load_failure if instance.worker is not None else None
    return instance.revision.next_try(last, instance.context.rng, failed.code if failed is not None else "")


def _clean_up(instance: Instance) -> None:
    worker, context = instance.require_worker(), instance.context
    release_gpu(instance)
    worker.close()
    if instance.revision.spec.group:
        instance.worker = None
        if worker.shared is not None:
            worker.shared.leave(instance.worker_id)  # whatever it left belongs to the process
        return
    scratch = scratch_dir(context.launch_environment, instance.worker_id)
    context.cleanup.add(worker.group, scratch, worker_socket(context.settings.runtime_dir, *instance.worker_id))
    instance.worker = None
