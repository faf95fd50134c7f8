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
from mmsup.ipc.messages import keeper_control
from mmsup.supervisor.postmortem import stack_trace
from mmsup.supervisor.processes import usage
from mmsup.supervisor.processes.launch_spec import worker_token

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance
    from mmsup.supervisor.instances.worker_process import Tenure

QUESTION: Final = signal.SIGUSR2
ANSWER_S: Final = 0.5
"""It takes a few milliseconds, on a busy machine a few hundred; one who has blocked the signal never answers."""
QUIET_S: Final = 0.05
"""An answer is written in one go: after such a silence one is over that does not look whole."""
LOOK_S: Final = 0.005
_STANDING: Final = frozenset({"worker_hung", "load_timeout"})


def ask(instance: Instance) -> None:
    """Ask it, if it stands still and can answer; once."""
    tenure = instance.tenure
    if tenure is None or tenure.life is None or tenure.life.dead or tenure.asked_s or not _stands(tenure):
        return
    # A process that has not come to its own first line has no handler yet, and would die of the question.
    if tenure.life.progress().activity is Activity.STARTING or not usage.can_run(tenure.life.pid):
        return
    tenure.asked_s = time.monotonic()
    instance.site.keeper.say(keeper_control.Signal(worker_token(*instance.key), QUESTION))


def is_awaited(tenure: Tenure) -> bool:
    """Whether its answer is still on its way."""
    if not tenure.asked_s or tenure.life is None or tenure.life.dead:
        return False
    now_s = time.monotonic()
    heard_s = tenure.life.crash_heard_s
    is_over = stack_trace.is_whole(tenure.life.crash_text) or now_s - heard_s >= QUIET_S
    return not (heard_s > tenure.asked_s and is_over) and now_s - tenure.asked_s < ANSWER_S


def _stands(tenure: Tenure) -> bool:
    said = tenure.judgement or tenure.failed
    return said is not None and said.code in _STANDING
