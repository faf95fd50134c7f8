"""Who is blamed for the end of a shared process, and what the others are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmsup.ipc.memory.status_page import Activity, Progress
from mmsup.ipc.paths import WorkerId
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.groups.group_members import SHARED_CODE, GroupMembers
from mmsup.supervisor.instances.context import GroupMember

A, B, C = (1, 1), (2, 1), (3, 1)


class Group(GroupMembers):
    """Three members with pages that the test writes."""

    def __init__(self, **activities: Activity) -> None:
        super().__init__()
        self.told: dict[WorkerId, tuple[str, str]] = {}
        for worker, name in zip((A, B, C), "abc", strict=True):
            spec = ModelSpec(name, "1", f"/models/{name}/1", "model.py", "custom", "python", group="g")
            self.members[worker] = GroupMember(worker, spec, self._note(worker), lambda: None, lambda _: None)
            page = Progress(activities.get(name, Activity.IDLE), 0, 0, 0, 0, 0)
            process: Any = SimpleNamespace(own_progress=lambda page=page: page)
            self._processes[worker] = process

    def _note(self, worker: WorkerId) -> Any:
        return lambda code, text: self.told.__setitem__(worker, (code, text))


def test_the_one_that_is_ended_is_blamed_and_the_others_are_told_by_its_name() -> None:
    group = Group(a=Activity.BUSY)
    group.ending(A, "worker_hung", "no progress for 5 s")
    told = SHARED_CODE, "it shares its worker with a/1, which was ended: no progress for 5 s"
    assert group.told == {B: told, C: told}
    assert (group.ended_by(A), group.ended_by(B)) == ("", "a/1, which was ended: no progress for 5 s")
    assert [group.is_blamed(each) for each in (A, B, C)] == [True, False, False]
    assert group.names_beside(B) == ("a/1", "c/1")
    assert not group.takes_members


def test_the_first_blame_stays() -> None:
    group = Group(a=Activity.BUSY)
    group.ending(A, "worker_hung", "no progress for 5 s")
    group.told.clear()
    group.ending(B, "bad_worker_reply", "it closed its channel")
    assert not group.told
    assert group.ended_by(B).startswith("a/1")


def test_a_process_that_is_stuck_beside_all_of_them_is_nobodys_fault() -> None:
    group = Group()
    group.ending(B, "worker_hung", "its loop has not come round")
    told = "worker_hung", "its loop has not come round"
    assert group.told == {A: told, C: told}
    assert [group.ended_by(each) for each in (A, B, C)] == ["", "", ""]
    assert not group.blame_text()


@pytest.mark.parametrize("activity", [Activity.BUSY, Activity.LOADING, Activity.WARMING, Activity.STOPPING])
def test_what_is_found_of_the_process_may_be_the_doing_of_the_one_that_has_it_alone(activity: Activity) -> None:
    group = Group(b=activity)
    assert [group.may_have_caused(each) for each in (A, B, C)] == [False, True, False]
    assert [group.is_running(each) for each in (A, B, C)] == [False, True, False]


def test_while_none_runs_it_may_be_anybodys() -> None:
    assert all(Group().may_have_caused(each) for each in (A, B, C))


def test_those_that_have_left_are_still_named_by_what_was_told_of_the_end() -> None:
    group = Group(a=Activity.BUSY)
    group.ending(A, "worker_oom", "cap 1 GiB")
    del group.members[A]
    assert group.ended_by(B) == "a/1, which was ended: cap 1 GiB"
    assert group.names_beside(B) == ("a/1", "c/1")
