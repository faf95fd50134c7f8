"""Re-execution of the keeper: its pid, children, listeners and watchdog stay."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import (
    DEADLINE_S,
    KeeperRig,
    RelayedController,
    forget,
    is_alive,
    keeper_rig,
    state_of,
    wait_readable,
    wait_until,
)
from mmsup.ipc.memory.status_page import Activity, StatusPageReader, StatusPageWriter
from mmsup.ipc.messages.keeper_control import (
    CheckpointPart,
    ChildDescriptors,
    ChildExited,
    KeeperInventory,
    RequestUpgrade,
    SaveCheckpoint,
    SignalChild,
    StepDown,
    StopReason,
    TerminateRequested,
    UpgradeRefused,
)
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.supervisor.keeper import reexec
from mmsup.supervisor.keeper.children import Child
from mmsup.supervisor.keeper.dying_cgroups import DyingGroup

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def reexecuted(rig: KeeperRig, controller: RelayedController) -> tuple[RelayedController, KeeperInventory]:
    """Re-execute the keeper; the next controller and its inventory."""
    controller.send(RequestUpgrade(force=True))
    assert controller.receive(StepDown).replaces_keeper
    controller.leave()
    following = rig.controller()
    return following, following.receive(KeeperInventory)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_the_state_is_read_as_it_was_written_and_cannot_be_changed() -> None:
    ended = ChildExited("worker.1.1", 7, 0, 9)
    child = Child(
        ChildDescriptors("worker.1.1", 7, "note"), (3, 4, 5, 6, 7), ("/x/procs",), None, is_announced=True, exited=ended
    )
    state = state_of(children=(child,), dying_groups=(DyingGroup(("/x",), 1.5),), notify_address="\0abstract")
    fd = reexec.write(state)
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    assert reexec.read(fd) == state


@pytest.mark.parametrize("text", ["[]", "{}", "[2, 1]", "[1, 1]", '"x"'])
def test_a_state_of_another_format_is_refused(text: str) -> None:
    fd = os.memfd_create("state")
    os.write(fd, text.encode())
    with pytest.raises(WireError):
        reexec.read(fd)


def test_a_keeper_becomes_another_program_and_its_children_do_not_notice(rig: KeeperRig) -> None:
    first = rig.ready_controller()
    child = first.spawn("worker.1.1")
    first.spawn("worker.2.1")
    first.send(SaveCheckpoint("model/m", "a record"))
    StatusPageWriter(child.page).set_activity(Activity.BUSY, 1)
    second, inventory = reexecuted(rig, first)
    assert (inventory.keeper_pid, inventory.keeper_generation, inventory.generation) == (rig.pid, 2, 2)
    assert (inventory.checkpoint_parts, inventory.children, inventory.settings) == (1, 2, rig.settings.to_json())
    assert second.receive(CheckpointPart).entries == {"model/m": "a record"}
    again = second.child()
    assert (again.token, again.pid) == (child.token, child.pid)
    assert StatusPageReader(again.page).read().activity is Activity.BUSY
    assert second.child().token == "worker.2.1"
    host, _, port = inventory.addresses["http"].rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S):
        pass
    second.send(SignalChild("worker.2.1", signal.SIGKILL))
    assert forget(second, "worker.2.1").signal == signal.SIGKILL
    second.spawn("worker.3.1")
    assert '"keeper_renewed"' in rig.stderr.read_text()
    rig.finish(second)
    assert not is_alive(child.pid)
    assert os.listdir(rig.settings.runtime_dir) == ["lock"]


def test_the_same_code_needs_no_reexec_and_the_next_controller_starts_at_once(rig: KeeperRig) -> None:
    first = rig.ready_controller()
    first.send(RequestUpgrade(force=False))
    assert not first.receive(StepDown).replaces_keeper
    first.leave()
    second = rig.controller()
    inventory = second.receive(KeeperInventory)
    assert (inventory.keeper_generation, inventory.generation) == (1, 2)
    assert '"brain_relieved"' in (text := rig.stderr.read_text()), text[-1500:]
    assert '"brain_exit"' not in rig.stderr.read_text()
    rig.finish(second)


def test_an_exit_between_two_programs_is_reported_to_the_next_controller(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    controller.send(RequestUpgrade(force=True))
    controller.receive(StepDown)
    os.kill(rig.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGKILL)
    wait_readable(child.pidfd, "death")
    controller.leave()
    os.kill(rig.pid, signal.SIGCONT)
    second = rig.controller()
    assert second.receive(KeeperInventory).keeper_generation == 2
    assert second.child().pid == child.pid
    assert second.receive(ChildExited).signal == signal.SIGKILL
    rig.finish(second)


def test_a_stop_after_the_reexec_is_carried_out(rig: KeeperRig) -> None:
    second, _ = reexecuted(rig, rig.ready_controller())
    rig.process.send_signal(signal.SIGTERM)
    second.receive(StopReason)
    second.receive(TerminateRequested)
    rig.finish(second)


def test_a_stop_before_the_reexec_prevents_it(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    controller.send(RequestUpgrade(force=True))
    controller.receive(StepDown)
    rig.process.send_signal(signal.SIGTERM)
    controller.receive(StopReason)
    controller.receive(TerminateRequested)
    controller.leave()
    second = rig.controller()
    inventory = second.receive(KeeperInventory)
    assert (inventory.stopping, inventory.keeper_generation) == (True, 1)
    second.send(RequestUpgrade(force=True))
    assert "the server ends" in second.receive(UpgradeRefused).text
    rig.finish(second)


def test_a_controller_that_does_not_step_down_is_killed(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, leave_s=0.3) as rig:
        first = rig.ready_controller()
        first.send(RequestUpgrade(force=False))
        first.receive(StepDown)
        second = rig.controller()
        assert second.receive(KeeperInventory).generation == 2
        assert "does not step down" in rig.stderr.read_text()
        rig.finish(second)


def test_repeated_reexecs_leak_no_descriptor(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    counts = []
    for generation in range(2, 7):
        controller, inventory = reexecuted(rig, controller)
        assert inventory.keeper_generation == generation
        assert controller.child().pid == child.pid
        wait_until(lambda: not _preflights(rig.pid), "the preflight is reaped")
        counts.append(descriptors(rig.pid))
    assert len(set(counts)) == 1, counts
    rig.finish(controller)


def _preflights(keeper: int) -> list[str]:
    found = []
    for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            line = Path(f"/proc/{child}/cmdline").read_text()
            found += [line] if "rehearse" in line else []
    return found


def test_the_next_program_pings_the_watchdog_too(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE_S)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        with keeper_rig(tmp_path, environ=environ) as rig:
            controller, _ = reexecuted(rig, rig.ready_controller())
            systemd.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while systemd.recv(1000):
                    pass
            systemd.settimeout(DEADLINE_S)
            assert systemd.recv(1000) == b"WATCHDOG=1"
            rig.finish(controller)


def test_the_state_names_every_descriptor_once() -> None:
    child = Child(ChildDescriptors("worker.1.1", 7, ""), (20, 21, 22, 23, 24), (), 25, is_announced=True, exited=None)
    fields = {
        "locks": (3, 4),
        "listeners": {"http": 5, "control": 6},
        "lifeline": 7,
        "lifeline_writer": 8,
        "counter_tables": (9, 10),
    }
    found = state_of(children=(child,), **fields).descriptors()
    assert sorted(found) == [*range(3, 11), *range(20, 26)]
