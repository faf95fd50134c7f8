"""The orderly end: not ready, drained, workers told to leave, gateways closed, then the keeper is told."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Final

from mmsup.ipc import exit_codes
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import SignalChild
from mmsup.supervisor.instances import lifecycle_events
from mmsup.supervisor.instances.revision import RevisionRole

if TYPE_CHECKING:
    from mmsup.supervisor.controller.controller import Controller

WORKER_EXIT_S: Final = 5.0
"""What workers may take to unload, at least, however long the drain took."""
KILL_EXIT_S: Final = 2.0
"""What the kernel may take to end workers that have not left by then."""
GATEWAY_EXIT_S: Final = 3.0
"""What gateways may take to close idle connections."""


async def shut_down(brain: Controller) -> None:
    """Carry it out. Nothing here is waited for beyond its limit."""
    began_s = time.monotonic()
    brain.state_dir.event_log.record("stopping", "draining: accepted work is finished, new work is refused")
    brain.loader.stop_accepting()
    brain.model_set.on_reconciled()
    failpoint("brain.drain")
    drained = await brain.gateways.drain(brain.settings.exit_timeout_s)
    failpoint("brain.drained")
    for model in brain.model_set.models.values():
        for edition in model.revisions:
            if edition.role is not RevisionRole.RETIRING:
                brain.model_set.retire(edition)
    left_s = max(brain.settings.exit_timeout_s - (time.monotonic() - began_s), WORKER_EXIT_S)
    await brain.change_signal.wait_until(
        lambda: not any(each.can_be_stopped() for each in brain.model_set.instances()), left_s
    )
    for instance in brain.model_set.instances():
        if instance.can_be_stopped():
            instance.apply(
                lifecycle_events.ExitOverdue()
            )  # who still waits for it is told so, instead of being cut off
    await brain.change_signal.wait_until(
        lambda: not any(each.can_be_stopped() for each in brain.model_set.instances()), KILL_EXIT_S
    )
    failpoint("brain.emptied")
    for gateway in brain.gateways.processes():
        brain.send_to_keeper(SignalChild(gateway.token, signal.SIGTERM))
    await brain.change_signal.wait_until(
        lambda: all(each.process is None for each in brain.gateways.processes()), GATEWAY_EXIT_S
    )
    brain.state_dir.desired_state.clear()
    text = "drained" if drained else f"work was left after {brain.settings.exit_timeout_s:g} s"
    brain.state_dir.event_log.record("stopping", f"{text}; the server ends")
    failpoint("brain.finish")
    brain.finish(exit_codes.SUCCESS if drained else exit_codes.REFUSED)
