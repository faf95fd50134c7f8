"""Asks a hung worker for the stacks of its threads before it is killed, and waits a moment for them.

Its callers have been answered by then. faulthandler writes the stacks to the crash pipe from a signal handler in C, so
neither a deadlock nor a loop that holds the GIL prevents it. A process that is stopped or blocked in the kernel is not
asked.
"""

from __future__ import annotations

import signal
import time
from typing import Final

from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.instances.worker_process import WorkerProcess
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.processes import usage
from mmsup.supervisor.processes.launch_spec import worker_token

DUMP_SIGNAL: Final = signal.SIGUSR2
DUMP_LIMIT_S: Final = 0.5
"""A dump takes a few milliseconds, on a busy machine a few hundred; a worker that blocks the signal writes none."""
QUIET_S: Final = 0.05
"""A dump is written in one go: after so long without more it is over even if it does not look complete."""
POLL_S: Final = 0.005
_HANG_CODES: Final = frozenset({"worker_hung", "load_timeout"})


def request(instance: Instance) -> None:
    """Ask a hung worker for a dump, once, if it can write one."""
    worker = instance.worker
    process = worker.process if worker is not None else None
    if worker is None or process is None or process.is_dead:
        return
    if worker.termination.dump_requested_s or not _is_hung(worker):
        return
    # A process that has not come to its own first line has no handler yet and would die of the signal.
    if process.progress().activity is Activity.STARTING or not usage.can_run(process.pid):
        return
    worker.termination.dump_requested_s = time.monotonic()
    instance.context.keeper.send(SignalChild(worker_token(*instance.worker_id), DUMP_SIGNAL))


def is_pending(worker: WorkerProcess) -> bool:
    requested_s, process = worker.termination.dump_requested_s, worker.process
    if not requested_s or process is None or process.is_dead:
        return False
    now_s = time.monotonic()
    is_over = stack_trace.is_complete(process.crash.text) or now_s - process.crash.read_s >= QUIET_S
    return not (process.crash.read_s > requested_s and is_over) and now_s - requested_s < DUMP_LIMIT_S


def _is_hung(worker: WorkerProcess) -> bool:
    reason = worker.termination.condemned or worker.termination.load_failure
    return reason is not None and reason.code in _HANG_CODES
