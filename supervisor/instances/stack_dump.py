"""Asks a worker that stands still for its stack before it is killed, and waits for the answer no longer than a moment.

Its callers have been answered by then. faulthandler answers from a signal handler in C, so a deadlock or a loop that
holds the GIL does not keep it from answering; a process that is stopped, or stuck in the kernel, is not asked. The
answer comes through the crash pipe, as what a crash says.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.processes import usage
from mmsup.supervisor.processes.launch_spec import worker_token

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance
    from mmsup.supervisor.instances.worker_process import WorkerProcess

DUMP_SIGNAL: Final = signal.SIGUSR2
DUMP_LIMIT_S: Final = 0.5
"""It takes a few milliseconds, on a busy machine a few hundred; one who has blocked the signal never answers."""
QUIET_S: Final = 0.05
"""An answer is written in one go: after such a silence one is over that does not look whole."""
POLL_S: Final = 0.005
_HANG_CODES: Final = frozenset({"worker_hung", "load_timeout"})


def request(instance: Instance) -> None:
    """Ask it, if it stands still and can answer; once."""
    tenure = instance.worker
    if (
        tenure is None
        or tenure.process is None
        or tenure.process.is_dead
        or tenure.dump_requested_s
        or not _is_hung(tenure)
    ):
        return
    # A process that has not come to its own first line has no handler yet, and would die of the question.
    if tenure.process.progress().activity is Activity.STARTING or not usage.can_run(tenure.process.pid):
        return
    tenure.dump_requested_s = time.monotonic()
    instance.context.keeper.send(SignalChild(worker_token(*instance.worker_id), DUMP_SIGNAL))


def is_pending(tenure: WorkerProcess) -> bool:
    """Whether its answer is still on its way."""
    if not tenure.dump_requested_s or tenure.process is None or tenure.process.is_dead:
        return False
    now_s = time.monotonic()
    heard_s = tenure.process.crash_read_s
    is_over = stack_trace.is_complete(tenure.process.crash_text) or now_s - heard_s >= QUIET_S
    return not (heard_s > tenure.dump_requested_s and is_over) and now_s - tenure.dump_requested_s < DUMP_LIMIT_S


def _is_hung(tenure: WorkerProcess) -> bool:
    said = tenure.condemned or tenure.load_failure
    return said is not None and said.code in _HANG_CODES
