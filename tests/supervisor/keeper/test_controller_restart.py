"""Brains of one line: what a keeper does when they end, without a keeper."""

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
from mmsup.ipc.messages.keeper_control import ChildExited, Heartbeat, KeeperInventory, ReloadRequested, ShutdownFinished
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.keeper.controller_restart import ControllerRestart
from mmsup.supervisor.observability.console import Console

pytestmark = pytest.mark.slow


PRELUDE = """
import os, sys, time
control = int(sys.argv[1].removeprefix("control="))
"""
SLEEP = "time.sleep(1000)"


class Court:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.greeted = 0
        self.asked: list[Any] = []  # messages of TO_KEEPER

    def on_controller_start(self) -> None:
        self.greeted += 1

    def on_message(self, message: Any) -> None:  # one of TO_KEEPER
        self.asked.append(message)


class Realm:
    """A succession with its court, and the lines it says."""

    def __init__(self, script: str, folder: Path) -> None:
        self.court = Court()
        self.selector = selectors.DefaultSelector()
        self.said = (folder / "said").open("w+b")
        argv = [sys.executable, "-S", "-c", PRELUDE + script] if script else ["/nowhere/brain"]
        self.brains = ControllerRestart(argv, {}, self.selector, Console("default", self.said.fileno()), self.court)

    def end_of_brain(self) -> None:
        """Until it is dead; then as the keeper does."""
        pid = self.brains.pid
        pidfd = os.pidfd_open(pid)
        wait_readable(pidfd, "death")
        os.close(pidfd)
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        self.brains.on_exit(ChildExited("brain", pid, found.si_status, 0))
        os.waitpid(pid, 0)

    def text(self) -> str:
        self.said.seek(0)
        return self.said.read().decode()

    def close(self) -> None:
        if self.brains.pid:
            self.brains.kill()
            self.end_of_brain()
        self.selector.close()
        self.said.close()


@pytest.fixture
def realms(tmp_path: Path) -> Iterator[Any]:  # a maker of realms
    made: list[Realm] = []

    def make(script: str) -> Realm:
        made.append(Realm(script, tmp_path))
        return made[-1]

    yield make
    for realm in made:
        realm.close()


def test_the_first_brain_is_due_at_once_and_is_greeted(realms: Any) -> None:
    realm = realms(SLEEP)
    assert (realm.brains.pid, realm.brains.due_s) == (0, 0.0)
    realm.brains.tend(time.monotonic())
    assert realm.brains.pid
    assert (realm.brains.generation, realm.court.greeted) == (1, 1)


def test_brains_that_fall_follow_each_other_at_growing_distances(realms: Any) -> None:
    realm = realms("sys.exit(3)")
    waits: list[float] = []
    now_s = time.monotonic()
    for _ in range(4):
        realm.brains.tend(max(now_s, realm.brains.due_s))
        realm.end_of_brain()
        waits.append(realm.brains.due_s - time.monotonic())
    assert waits[0] <= 0
    assert 0.3 < waits[1] < 0.7
    assert 0.7 < waits[2] < 1.3
    assert 1.5 < waits[3] < 2.5
    assert realm.brains.generation == 4
    assert 'cause="exit 3"' in realm.text()


def test_before_its_time_no_brain_is_started_unless_somebody_hurries(realms: Any) -> None:
    realm = realms("sys.exit(3)")
    for _ in range(2):
        realm.brains.tend(max(time.monotonic(), realm.brains.due_s))
        realm.end_of_brain()
    realm.brains.tend(time.monotonic())
    assert not realm.brains.pid
    realm.brains.hurry()
    realm.brains.tend(time.monotonic())
    assert realm.brains.pid


def test_a_brain_that_cannot_be_run_is_said_with_the_reason(realms: Any) -> None:
    realm = realms("")
    realm.brains.tend(time.monotonic())
    realm.end_of_brain()
    assert "No such file or directory: '/nowhere/brain'" in realm.text()


def test_the_last_words_of_a_brain_are_heard(realms: Any) -> None:
    realm = realms("""os.write(control, b'["Finished",0]')""")
    realm.brains.tend(time.monotonic())
    realm.end_of_brain()
    assert realm.court.asked == [ShutdownFinished(0)]


def test_a_silent_brain_is_killed_once(realms: Any) -> None:
    realm = realms(SLEEP)
    realm.brains.tend(time.monotonic())
    silent_s = realm.brains.due_s
    realm.brains.tend(silent_s - 0.1)
    assert "brain_killed" not in realm.text()
    for _ in range(3):
        realm.brains.tend(silent_s)
    assert realm.text().count("brain_killed") == 1
    assert realm.brains.due_s == float("inf")
    realm.end_of_brain()


def test_a_brain_that_hangs_up_is_killed(realms: Any) -> None:
    realm = realms(f"os.close(control); {SLEEP}")
    realm.brains.tend(time.monotonic())
    for key, _ in realm.selector.select(10):
        key.data()
    assert not realm.selector.get_map(), "the end of a channel would be readable for ever"
    realm.brains.tend(time.monotonic())
    assert 'text="hung up"' in realm.text()
    realm.end_of_brain()


def test_a_brain_that_cannot_be_heard_is_killed_and_the_keeper_lives(
    realms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    realm = realms(f"""os.write(control, b'["Beat"]'); {SLEEP}""")
    realm.brains.tend(time.monotonic())

    def fail(_: ControlChannel) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(ControlChannel, "receive", fail)
        for key, _ in realm.selector.select(10):
            key.data()
        realm.brains.tend(time.monotonic())
    assert 'text="cannot be heard: Cannot allocate memory"' in realm.text()
    realm.end_of_brain()


def test_a_brain_that_never_reads_loses_its_place_and_not_our_memory(realms: Any) -> None:
    realm = realms(SLEEP)
    realm.brains.tend(time.monotonic())
    inventory = KeeperInventory(1, 1, "x" * 50_000, "", 0, {}, stopping=False)
    for _ in range(20):
        realm.brains.tell(inventory)
    realm.brains.tend(time.monotonic())
    assert "brain_killed" not in realm.text()
    for _ in range(5000):
        realm.brains.tell(ReloadRequested())
    realm.brains.tend(time.monotonic())
    assert 'text="does not read"' in realm.text()
    realm.end_of_brain()


def test_a_beat_asks_for_nothing_but_time(realms: Any) -> None:
    realm = realms(f"""os.write(control, b'["Beat"]'); {SLEEP}""")
    realm.brains.tend(time.monotonic())
    first_s = realm.brains.due_s
    for key, _ in realm.selector.select(10):
        key.data()
    assert realm.court.asked == [Heartbeat()]
    assert realm.brains.due_s < first_s
    assert realm.brains.due_s > time.monotonic() + 4


def test_what_is_said_while_no_brain_is_there_is_not_kept(realms: Any) -> None:
    realm = realms(SLEEP)
    realm.brains.tell(ReloadRequested())
    realm.brains.kill()
    realm.brains.tend(time.monotonic())
    assert realm.brains.pid


def test_the_last_brain_is_not_missed(realms: Any) -> None:
    realm = realms("sys.exit(0)")
    realm.brains.tend(time.monotonic())
    realm.brains.retire()
    realm.end_of_brain()
    assert "brain_exit" not in realm.text()
