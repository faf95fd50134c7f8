"""Members of a shared process that are told to leave before they have loaded, or of which it is told twice."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mmsup.ipc.memory.status_page import Activity, StatusPageReader, StatusPageWriter, make_status_page
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.worker_control import (
    FROM_WORKER,
    ConfigureWorker,
    HostMember,
    LoadFailed,
    MemberLeft,
    StopWorker,
)
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.worker.hosting.group_loop import GroupLoop
from mmsup.worker.startup.controller_channel import WorkerControlChannel

SPEC = ModelSpec("m", "1", "/nonexistent", "model.py", "custom", "python", group="g")
CONFIGURATION = ConfigureWorker(WIRE_VERSION, 1, 1, "", SPEC, 0, 0)


class Controller:
    """The controller's ends of a shared process that runs in this one."""

    def __init__(self) -> None:
        self.channel, far = ControlChannel.pair()
        page = make_status_page()
        reading, self._lifeline = os.pipe()
        self._open = [page, reading]
        self.loop = GroupLoop(WorkerControlChannel(far, reading), StatusPageWriter(page))
        self._far = far

    def close(self) -> None:
        for fd in (*self._open, self._lifeline):
            os.close(fd)
        self.channel.close()
        self._far.close()

    def host(self) -> MemberEnds:
        """A new member, of which the process is told."""
        near, far = ControlChannel.pair()
        member = MemberEnds(near, far, make_status_page())
        self._open += [member.page]
        self.tell(member)
        return member

    def tell(self, member: MemberEnds) -> None:
        assert self.channel.send(encode(HostMember()), (member.far.fileno(), member.page))

    def run(self) -> None:
        """Until no member is left."""
        assert self.channel.send(encode(StopWorker()))
        self.loop.run()


class MemberEnds:
    def __init__(self, near: ControlChannel, far: ControlChannel, page: int) -> None:
        self.near, self.far, self.page = near, far, page

    def close(self) -> None:
        self.near.close()
        self.far.close()

    def said(self) -> list[object]:
        """What it has sent."""
        found: list[object] = []
        while (received := self.near.receive()) is not None:
            found.append(decode(received[0], FROM_WORKER))
        return found

    def activity(self) -> Activity:
        return StatusPageReader(self.page).read().activity


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()
    gc.freeze()  # as conftest.py has done; a member that leaves thaws all
    gc.enable()  # a process of a group collects no garbage by itself


def test_a_member_that_is_told_to_stop_before_what_to_load_leaves_and_the_process_goes_on(
    controller: Controller,
) -> None:
    member, other = controller.host(), controller.host()
    assert member.near.send(encode(StopWorker()))
    controller.loop.turn()
    controller.loop.turn()
    assert member.said() == [MemberLeft()]
    assert (member.activity(), other.activity()) == (Activity.LEFT, Activity.STARTING)
    assert other.near.send(encode(StopWorker()))
    controller.run()
    assert other.said() == [MemberLeft()]
    for each in (member, other):
        each.close()


def test_a_member_of_which_the_process_is_told_twice_is_one(controller: Controller) -> None:
    member = controller.host()
    controller.tell(member)
    assert member.near.send(encode(StopWorker()))
    controller.run()
    assert member.said() == [MemberLeft()]
    member.close()


@pytest.mark.parametrize("text", ["of another wire version", "no configuration"])
def test_a_first_message_that_cannot_be_followed_is_a_failed_load_of_that_member_alone(
    controller: Controller, text: str
) -> None:
    member = controller.host()
    version = replace(CONFIGURATION, wire_version=WIRE_VERSION + 1)
    assert member.near.send(encode(version) if text.startswith("of") else b"\xc1")
    controller.run()
    failed, left = member.said()
    assert isinstance(failed, LoadFailed)
    assert "wire version" in failed.text
    assert left == MemberLeft()
    member.close()


def test_a_member_that_nobody_knows_any_more_goes_without_a_word(controller: Controller) -> None:
    member = controller.host()
    member.near.close()
    member.far.close()
    controller.run()
    assert member.activity() is Activity.LEFT


def test_a_load_that_fails_says_so_and_leaves(controller: Controller) -> None:
    member = controller.host()
    assert member.near.send(encode(CONFIGURATION))
    controller.run()
    *_, failed, left = member.said()
    assert isinstance(failed, LoadFailed)
    assert left == MemberLeft()
    member.close()
