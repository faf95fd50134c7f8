"""A hot upgrade as the keeper carries it out: preflight, replacement of the controller, then of the keeper itself."""

from __future__ import annotations

from collections.abc import Callable

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.keeper_control import ChildExited, StepDown, UpgradeRefused
from mmsup.supervisor.keeper.controller_restart import ControllerRestart
from mmsup.supervisor.keeper.preflight import Preflight
from mmsup.supervisor.keeper.reexec import KeeperState


class KeeperUpgrade:
    """At most one upgrade at a time, from RequestUpgrade to the exec."""

    def __init__(self, build_id: str, controller: ControllerRestart) -> None:
        """`build_id`: of the running keeper."""
        self._build_id = build_id
        self._controller = controller
        self._preflight: Preflight | None = None
        self.is_reexec_due = False
        """The keeper must re-execute itself once the controller has exited."""

    @property
    def pid(self) -> int:
        """The preflight process; 0 while there is none."""
        return self._preflight.pid if self._preflight else 0

    @property
    def due_s(self) -> float:
        """When `check` has something to do."""
        return self._preflight.deadline_s if self._preflight else float("inf")

    def start(self, state: Callable[[], KeeperState], now_s: float, *, force: bool, stopping: bool) -> None:
        """Start the preflight; UpgradeRefused to the controller if that is impossible."""
        try:
            if self._preflight is not None or stopping:
                raise OSError("an upgrade is under way, or the server ends")
            self._preflight = Preflight(state(), force=force, now_s=now_s)
        except OSError as error:
            self._controller.send(UpgradeRefused(error.strerror or str(error)))

    def check(self, now_s: float) -> None:
        if self._preflight is not None and now_s >= self._preflight.deadline_s:
            self._preflight.kill()

    def on_exit(self, exited: ChildExited) -> None:
        """The preflight has exited: refuse the upgrade, or ask the controller to step down for the next one."""
        preflight, self._preflight = self._preflight, None
        assert preflight is not None, "no preflight is running"
        result = preflight.result(exited)
        failpoint("keeper.trial_ended")
        if result.error:
            self._controller.send(UpgradeRefused(result.error))
            return
        self.is_reexec_due = preflight.force or result.build_id != self._build_id
        self._controller.replace(StepDown(self.is_reexec_due))
        failpoint("keeper.relieved")

    def cancel(self) -> None:
        """The controller that requested the upgrade has exited; the next one may request it again."""
        if self._preflight is not None:
            self._preflight.close()
            self._preflight = None
