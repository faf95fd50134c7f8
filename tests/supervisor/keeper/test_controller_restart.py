"""ControllerRestart without a keeper; the controllers are programs of one line."""

from __future__ import annotations

import errno
import os
import selectors
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keeper_rig import wait_readable
from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.messages.keeper_control import ChildExited, Heartbeat, KeeperInventory, ReloadRequested, ShutdownFinished
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.keeper.controller_process import MOST_EXTENSION_S
from mmsup.supervisor.keeper.controller_restart import ControllerRestart
from mmsup.supervisor.observability.console import Console

pytestmark = pytest.mark.slow


PRELUDE = """
import os, sys, time
control = int(sys.argv[1].removeprefix("control="))
"""
SLEEP = "time.sleep(1000)"


class RecordingListener:
    """Records the calls of ControllerRestart."""

    def __init__(self) -> None:
        self.starts = 0
        self.messages: list[Any] = []  # messages of TO_KEEPER

    def on_controller_start(self) -> None:
        self.starts += 1

    def on_message(self, message: Any) -> None:  # one of TO_KEEPER
        self.messages.append(message)


class RestartRig:
    """A ControllerRestart, its listener, and the console lines that it writes."""

    def __init__(self, script: str, folder: Path) -> None:
        self.listener = RecordingListener()
        self.selector = selectors.DefaultSelector()
        self.output = (folder / "said").open("w+b")
        argv = [sys.executable, "-S", "-c", PRELUDE + script] if script else ["/nowhere/program"]
        self.restart = ControllerRestart(
            argv, {}, self.selector, Console(LogSettings(format="default"), self.output.fileno()), self.listener
        )

    def reap_controller(self) -> None:
        """Wait for the exit of the controller and handle it as the keeper does."""
        pid = self.restart.pid
        pidfd = os.pidfd_open(pid)
        wait_readable(pidfd, "death")
        os.close(pidfd)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        self.restart.on_exit(ChildExited("controller", pid, found.si_status, 0))
        os.waitpid(pid, 0)

    def text(self) -> str:
        self.output.seek(0)
        return self.output.read().decode()

    def close(self) -> None:
        if self.restart.pid:
            self.restart.kill()
            self.reap_controller()
        self.selector.close()
        self.output.close()


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Any]:  # a function that makes a RestartRig
    made: list[RestartRig] = []

    def make(script: str) -> RestartRig:
        made.append(RestartRig(script, tmp_path))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


def test_the_first_controller_is_due_at_once_and_is_announced(rigs: Any) -> None:
    rig = rigs(SLEEP)
    assert (rig.restart.pid, rig.restart.due_s) == (0, 0.0)
    rig.restart.check(time.monotonic())
    assert rig.restart.pid
    assert (rig.restart.generation, rig.listener.starts) == (1, 1)


def test_controller_that_fall_follow_each_other_at_growing_distances(rigs: Any) -> None:
    rig = rigs("sys.exit(3)")
    waits: list[float] = []
    now_s = time.monotonic()
    for _ in range(4):
        rig.restart.check(max(now_s, rig.restart.due_s))
        rig.reap_controller()
        waits.append(rig.restart.due_s - time.monotonic())
    assert waits[0] <= 0
    assert 0.3 < waits[1] < 0.7
    assert 0.7 < waits[2] < 1.3
    assert 1.5 < waits[3] < 2.5
    assert rig.restart.generation == 4
    assert 'cause="exit 3"' in rig.text()


def test_no_controller_starts_during_the_backoff_except_by_start_now(rigs: Any) -> None:
    rig = rigs("sys.exit(3)")
    for _ in range(2):
        rig.restart.check(max(time.monotonic(), rig.restart.due_s))
        rig.reap_controller()
    rig.restart.check(time.monotonic())
    assert not rig.restart.pid
    rig.restart.start_now()
    rig.restart.check(time.monotonic())
    assert rig.restart.pid


def test_a_controller_that_cannot_be_run_is_logged_with_the_reason(rigs: Any) -> None:
    rig = rigs("")
    rig.restart.check(time.monotonic())
    rig.reap_controller()
    assert "No such file or directory: '/nowhere/program'" in rig.text()


def test_the_last_message_of_a_controller_is_received(rigs: Any) -> None:
    rig = rigs("""os.write(control, b'["ShutdownFinished",0]')""")
    rig.restart.check(time.monotonic())
    rig.reap_controller()
    assert rig.listener.messages == [ShutdownFinished(0)]


def test_a_silent_controller_is_killed_once(rigs: Any) -> None:
    rig = rigs(SLEEP)
    rig.restart.check(time.monotonic())
    silent_s = rig.restart.due_s
    rig.restart.check(silent_s - 0.1)
    assert "brain_killed" not in rig.text()
    for _ in range(3):
        rig.restart.check(silent_s + MOST_EXTENSION_S)  # it may have waited for a processor
    assert rig.text().count("brain_killed") == 1
    assert rig.restart.due_s == float("inf")
    rig.reap_controller()


def test_a_controller_that_closes_its_channel_is_killed(rigs: Any) -> None:
    rig = rigs(f"os.close(control); {SLEEP}")
    rig.restart.check(time.monotonic())
    for key, _ in rig.selector.select(10):
        key.data()
    assert not rig.selector.get_map(), "a closed channel stays readable"
    rig.restart.check(time.monotonic())
    assert 'text="closed its channel"' in rig.text()
    rig.reap_controller()


def test_a_controller_that_cannot_be_received_from_is_killed_and_the_keeper_lives(
    rigs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs(f"""os.write(control, b'["Heartbeat"]'); {SLEEP}""")
    rig.restart.check(time.monotonic())

    def fail(_: ControlChannel) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(ControlChannel, "receive", fail)
        for key, _ in rig.selector.select(10):
            key.data()
        rig.restart.check(time.monotonic())
    assert 'text="cannot be received from: Cannot allocate memory"' in rig.text()
    rig.reap_controller()


def test_a_controller_that_never_reads_is_killed_before_its_queue_grows_without_bound(rigs: Any) -> None:
    rig = rigs(SLEEP)
    rig.restart.check(time.monotonic())
    inventory = KeeperInventory(1, 1, "x" * 50_000, 0, 0, {}, stopping=False)
    for _ in range(20):
        rig.restart.send(inventory)
    rig.restart.check(time.monotonic())
    assert "brain_killed" not in rig.text()
    for _ in range(5000):
        rig.restart.send(ReloadRequested())
    rig.restart.check(time.monotonic())
    assert 'text="does not read"' in rig.text()
    rig.reap_controller()


def test_a_heartbeat_moves_the_deadline(rigs: Any) -> None:
    rig = rigs(f"""os.write(control, b'["Heartbeat"]'); {SLEEP}""")
    rig.restart.check(time.monotonic())
    first_s = rig.restart.due_s
    for key, _ in rig.selector.select(10):
        key.data()
    assert rig.listener.messages == [Heartbeat()]
    assert rig.restart.due_s < first_s
    assert rig.restart.due_s > time.monotonic() + 4


def test_a_heartbeat_that_the_keeper_was_too_busy_to_read_counts(rigs: Any) -> None:
    rig = rigs(f"""os.write(control, b'["Heartbeat"]'); {SLEEP}""")
    rig.restart.check(time.monotonic())
    assert rig.selector.select(10), "it is there, and nobody has read it"
    late_s = rig.restart.due_s
    rig.restart.check(late_s)
    assert rig.listener.messages == [Heartbeat()]
    assert "brain_killed" not in rig.text()
    rig.restart.check(late_s + 60)
    assert 'text="missed its heartbeats"' in rig.text()
    rig.reap_controller()


def test_messages_without_a_controller_are_dropped(rigs: Any) -> None:
    rig = rigs(SLEEP)
    rig.restart.send(ReloadRequested())
    rig.restart.kill()
    rig.restart.check(time.monotonic())
    assert rig.restart.pid


def test_the_exit_of_the_last_controller_is_not_logged(rigs: Any) -> None:
    rig = rigs("sys.exit(0)")
    rig.restart.check(time.monotonic())
    rig.restart.stop_restarting()
    rig.reap_controller()
    assert "brain_exit" not in rig.text()
