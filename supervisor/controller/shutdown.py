"""The orderly stop of a server: drain the gateways, stop the workers, stop the gateways, then tell the keeper."""

from __future__ import annotations

import signal
import time
from typing import Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ShutdownFinished, SignalChild
from mmsup.supervisor.controller.components import ControllerContext, Gateways, Models
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.models import revision_changes
from mmsup.supervisor.models.revision import RevisionRole

WORKER_EXIT_S: Final = 5.0
"""What workers may take to unload, however long the drain took."""
KILL_EXIT_S: Final = 2.0
"""What the kernel may take to end workers that were killed then."""
GATEWAY_EXIT_S: Final = 3.0
"""What gateways may take to close idle connections."""


async def shut_down(context: ControllerContext, models: Models, gateways: Gateways) -> int:
    """Stop the server, whose loads have been refused; the exit code. Waits for nothing beyond its limit."""
    started_s, exit_timeout_s = time.monotonic(), context.settings.exit_timeout_s
    model_set, wait_until = models.model_set, context.change_signal.wait_until
    failpoint("brain.drain")
    drained = await gateways.barriers.drain(exit_timeout_s)
    failpoint("brain.drained")
    for model in model_set.models.values():
        for revision in model.revisions:
            if revision.role is not RevisionRole.RETIRING:
                revision_changes.retire(revision)

    def are_stopped() -> bool:
        return not any(each.can_be_stopped() for each in model_set.instances())

    await wait_until(are_stopped, max(exit_timeout_s - (time.monotonic() - started_s), WORKER_EXIT_S))
    for instance in model_set.instances():
        if instance.can_be_stopped():
            instance.apply(lifecycle_events.ExitOverdue())  # its callers get an answer instead of a closed connection
    await wait_until(are_stopped, KILL_EXIT_S)
    failpoint("brain.emptied")
    for gateway in gateways.pool.processes():
        context.keeper.send(SignalChild(gateway.token, signal.SIGTERM))
    gateways.rpc_front.stop()

    def are_gone() -> bool:
        return gateways.rpc_front.process is None and all(each.process is None for each in gateways.pool.processes())

    await wait_until(are_gone, GATEWAY_EXIT_S)
    context.state_dir.desired_state.clear()
    text = "drained" if drained else f"work was left after {exit_timeout_s:g} s"
    context.state_dir.event_log.record("stopping", f"{text}; the server ends")
    failpoint("brain.finish")
    return exit_codes.SUCCESS if drained else exit_codes.REFUSED


def finish(context: ControllerContext, code: int) -> None:
    context.keeper.send(ShutdownFinished(code))
    context.finished.set()
