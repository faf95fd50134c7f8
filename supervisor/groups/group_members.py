"""The members of the process of a co-location group, and which of them has ended it, as far as that is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.ipc.paths import WorkerId
from mmsup.supervisor.groups import company
from mmsup.supervisor.groups.member_process import MemberProcess
from mmsup.supervisor.instances.context import GroupMember

SHARED_CODE: Final = "model_restarting"
"""What callers of a bystander get whose requests cannot be run again."""
_DOING: Final = {Activity.LOADING: "was loaded", Activity.WARMING: "was loaded", Activity.STOPPING: "was unloaded"}


@dataclass(slots=True)
class Blame:
    """By whom the process ended, as far as it is known."""

    worker: WorkerId | None = None
    text: str = ""
    is_nobodys: bool = False
    """It is known that none of them ran: each of them counts it as its own."""
    names: dict[WorkerId, str] = field(default_factory=dict[WorkerId, str])
    """The members at its end."""


class GroupMembers:
    def __init__(self) -> None:
        self.members: dict[WorkerId, GroupMember] = {}
        self.takes_members = True
        self._processes: dict[WorkerId, MemberProcess] = {}
        self._blame = Blame()

    def names_beside(self, worker: WorkerId) -> tuple[str, ...]:
        names = self._blame.names or self._names()
        return tuple(sorted(name for each, name in names.items() if each != worker))

    def ended_by(self, worker: WorkerId) -> str:
        culprit = self._blame.worker
        if culprit is None or culprit == worker:
            return ""
        return f"{self._blame.names[culprit]}, which {self._blame.text}"

    def is_blamed(self, worker: WorkerId) -> bool:
        return self._blame.worker == worker

    def blame_text(self) -> str:
        """The same for everybody; empty if it is not known, or it was stopped."""
        culprit = self._blame.worker
        return "" if culprit is None else f"{self._blame.names[culprit]} {self._blame.text}"

    def ending(self, worker: WorkerId, code: str, text: str) -> None:
        if self._blame.worker is not None or self._blame.is_nobodys or worker not in self.members:
            return
        if code == "worker_hung" and self.running() is None:  # it is stuck beside all of them
            self._blame.is_nobodys = True
            for other, member in list(self.members.items()):
                if other != worker:
                    member.on_crash(code, text)
            return
        self._set_blame(worker, f"was ended: {text}")
        self._tell_others()
        failpoint("brain.shared_end")

    def is_running(self, worker: WorkerId) -> bool:
        return self.running() == worker

    def may_have_caused(self, worker: WorkerId) -> bool:
        return self.running() in (None, worker)

    def running(self) -> WorkerId | None:
        """The member that has the process now."""
        return company.running({worker: each.own_progress() for worker, each in self._processes.items()})

    def _set_blame(self, worker: WorkerId | None, text: str) -> None:
        if not self._blame.names:
            self._blame.names = self._names()
        self._blame.worker, self._blame.text = worker, text
        self.takes_members = False

    def _tell_others(self) -> None:
        culprit = self._blame.worker
        if culprit is None:
            return
        for worker, member in list(self.members.items()):
            if worker != culprit:
                member.on_crash(SHARED_CODE, f"it shares its worker with {self.ended_by(worker)}")

    def _names(self) -> dict[WorkerId, str]:
        return {worker: f"{each.spec.name}/{each.spec.version}" for worker, each in self.members.items()}

    def _pages_beside(self, worker: WorkerId) -> Iterable[Progress]:
        return [each.own_progress() for other, each in self._processes.items() if other != worker]

    def _blame_running(self) -> None:
        """It has ended, and nobody has been blamed yet."""
        running = self.running()
        doing = _DOING.get(self._processes[running].own_progress().activity, "ran") if running is not None else ""
        self._set_blame(running, f"{doing} when it ended")
