"""A keeper that becomes another program of the same pid: its children, listeners and promises stay."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import DEADLINE_S, KeeperRig, RelayedBrain, forget, is_alive, keeper_rig, wait_readable, wait_until
from mmsup.ipc.memory.status_page import Activity, StatusPageReader, StatusPageWriter
from mmsup.ipc.messages.keeper_control import (
    ChildDescriptors,
    ChildExited,
    KeeperInventory,
    RequestUpgrade,
    SaveCheckpoint,
    SignalChild,
    StepDown,
    TerminateRequested,
    UpgradeRefused,
)
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.keeper import reexec
from supervisor_estate import estate_of

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def renewed(rig: KeeperRig, brain: RelayedBrain) -> tuple[RelayedBrain, KeeperInventory]:
    """The brain of the next program, and what it is told."""
    brain.say(RequestUpgrade(force=True))
    assert brain.hear(StepDown).replaces_keeper
    brain.leave()
    following = rig.brain()
    return following, following.hear(KeeperInventory)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_an_estate_is_read_as_it_was_written_and_nobody_can_change_it() -> None:
    ended = ChildExited("worker.1.1", 7, 0, 9)
    charge = reexec.KeptChild(
        ChildDescriptors("worker.1.1", 7, "note"), (3, 4, 5, 6, 7), ("/x/procs",), None, is_announced=True, exited=ended
    )
    estate = estate_of(charges=(charge,), graves=(reexec.KeptGroup(("/x",), 1.5),), notify_address="\0abstract")
    fd = reexec.write(estate)
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    assert reexec.read(fd) == estate


@pytest.mark.parametrize("text", ["[]", "{}", "[2, 1]", "[1, 1]", '"x"'])
def test_an_estate_of_another_format_is_refused(text: str) -> None:
    fd = os.memfd_create("estate")
    os.write(fd, text.encode())
    with pytest.raises(WireError):
        reexec.read(fd)


def test_a_keeper_becomes_another_program_and_its_children_do_not_notice(rig: KeeperRig) -> None:
    first = rig.greeted_brain()
    kid = first.spawn("worker.1.1")
    first.spawn("worker.2.1")
    first.say(SaveCheckpoint("what was wanted"))
    StatusPageWriter(kid.page).set_activity(Activity.BUSY, 1)
    second, said = renewed(rig, first)
    assert (said.keeper_pid, said.keeper_generation, said.generation) == (rig.pid, 2, 2)
    assert (said.checkpoint, said.children, said.settings) == ("what was wanted", 2, rig.settings.to_json())
    again = second.kid()
    assert (again.token, again.pid) == (kid.token, kid.pid)
    assert StatusPageReader(again.page).read().activity is Activity.BUSY
    assert second.kid().token == "worker.2.1"
    host, _, port = said.addresses["http"].rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S):
        pass
    second.say(SignalChild("worker.2.1", signal.SIGKILL))
    assert forget(second, "worker.2.1").signal == signal.SIGKILL
    second.spawn("worker.3.1")
    assert '"keeper_renewed"' in rig.stderr.read_text()
    rig.finish(second)
    assert not is_alive(kid.pid)
    assert os.listdir(rig.settings.runtime_dir) == ["lock"]


def test_the_same_code_needs_no_other_keeper_and_its_brain_is_followed_at_once(rig: KeeperRig) -> None:
    first = rig.greeted_brain()
    first.say(RequestUpgrade(force=False))
    assert not first.hear(StepDown).replaces_keeper
    first.leave()
    second = rig.brain()
    said = second.hear(KeeperInventory)
    assert (said.keeper_generation, said.generation) == (1, 2)
    assert '"brain_relieved"' in (text := rig.stderr.read_text()), text[-1500:]
    assert '"brain_exit"' not in rig.stderr.read_text()
    rig.finish(second)


def test_a_death_between_two_programs_is_told_to_the_next_brain(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    brain.say(RequestUpgrade(force=True))
    brain.hear(StepDown)
    os.kill(rig.pid, signal.SIGSTOP)
    os.kill(kid.pid, signal.SIGKILL)
    wait_readable(kid.pidfd, "death")
    brain.leave()
    os.kill(rig.pid, signal.SIGCONT)
    second = rig.brain()
    assert second.hear(KeeperInventory).keeper_generation == 2
    assert second.kid().pid == kid.pid
    assert second.hear(ChildExited).signal == signal.SIGKILL
    rig.finish(second)


def test_a_stop_after_the_change_finds_a_keeper_that_knows_what_to_do(rig: KeeperRig) -> None:
    second, _ = renewed(rig, rig.greeted_brain())
    rig.process.send_signal(signal.SIGTERM)
    second.hear(TerminateRequested)
    rig.finish(second)


def test_a_stop_before_the_change_comes_first(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    brain.say(RequestUpgrade(force=True))
    brain.hear(StepDown)
    rig.process.send_signal(signal.SIGTERM)
    brain.hear(TerminateRequested)
    brain.leave()
    second = rig.brain()
    said = second.hear(KeeperInventory)
    assert (said.stopping, said.keeper_generation) == (True, 1)
    second.say(RequestUpgrade(force=True))
    assert "the server ends" in second.hear(UpgradeRefused).text
    rig.finish(second)


def test_a_brain_that_does_not_step_down_is_ended(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, leave_s=0.3) as rig:
        first = rig.greeted_brain()
        first.say(RequestUpgrade(force=False))
        first.hear(StepDown)
        second = rig.brain()
        assert second.hear(KeeperInventory).generation == 2
        assert "does not step down" in rig.stderr.read_text()
        rig.finish(second)


def test_many_programs_of_one_keeper_hold_no_more_than_the_first(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    counts = []
    for life in range(2, 7):
        brain, said = renewed(rig, brain)
        assert said.keeper_generation == life
        assert brain.kid().pid == kid.pid
        wait_until(lambda: not _rehearsals(rig.pid), "the rehearsal is reaped")
        counts.append(descriptors(rig.pid))
    assert len(set(counts)) == 1, counts
    rig.finish(brain)


def _rehearsals(keeper: int) -> list[str]:
    found = []
    for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            line = Path(f"/proc/{child}/cmdline").read_text()
            found += [line] if "rehearse" in line else []
    return found


def test_systemd_hears_the_same_beat_from_the_next_program(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE_S)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        with keeper_rig(tmp_path, environ=environ) as rig:
            brain, _ = renewed(rig, rig.greeted_brain())
            systemd.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while systemd.recv(1000):
                    pass
            systemd.settimeout(DEADLINE_S)
            assert systemd.recv(1000) == b"WATCHDOG=1"
            rig.finish(brain)


def test_the_record_names_every_descriptor_once() -> None:
    charge = reexec.KeptChild(
        ChildDescriptors("worker.1.1", 7, ""), (20, 21, 22, 23, 24), (), 25, is_announced=True, exited=None
    )
    fields = {"locks": (3, 4), "listeners": {"http": 5, "control": 6}, "lifeline": 7, "life_end": 8, "tallies": (9, 10)}
    found = estate_of(charges=(charge,), **fields).descriptors()
    assert sorted(found) == [*range(3, 11), *range(20, 26)]
