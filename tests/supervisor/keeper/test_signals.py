"""Signals to a keeper: who sent one is said, and those that mean nothing to it end nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import KeeperRig, is_alive, keeper_rig, wait_until
from mmsup.ipc.messages.keeper_control import StopReason, TerminateRequested
from mmsup.ipc.stray_signals import STRAY, signal_name

pytestmark = pytest.mark.slow


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def test_who_sent_sigterm_is_in_the_log_and_told_to_the_controller(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    rig.process.send_signal(signal.SIGTERM)
    text = controller.receive(StopReason).text
    assert text.startswith(f"SIGTERM from pid {os.getpid()} (")
    assert "python" in text
    assert text.endswith(f", uid {os.getuid()}")
    controller.receive(TerminateRequested)
    rig.finish(controller)
    (line,) = [each for each in rig.stderr.read_text().splitlines() if '"event": "stopping"' in each]
    assert f"pid {os.getpid()} (" in line


def test_a_signal_that_means_nothing_is_one_line_in_the_log_and_ends_nothing(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    stray = sorted(STRAY - {signal.SIGHUP, signal.SIGPIPE})
    for number in stray:
        os.kill(rig.process.pid, number)

    def lines() -> list[str]:
        return [each for each in rig.stderr.read_text().splitlines() if "signal_ignored" in each]

    wait_until(lambda: len(lines()) == len(stray), "a line for each")
    assert all(f"pid {os.getpid()} (" in each for each in lines())
    assert all('"process": "keeper"' in each for each in lines())
    assert all(any(f'"{signal_name(number)}"' in each for each in lines()) for number in stray)
    assert is_alive(controller.pid)
    assert is_alive(child.pid)
    rig.finish(controller)


def test_a_child_has_no_signal_blocked_or_ignored_although_the_keeper_reads_its_own(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    status = dict(
        line.split(":\t") for line in Path(f"/proc/{child.pid}/status").read_text().splitlines() if "Sig" in line
    )
    assert int(status["SigBlk"], 16) == int(status["SigIgn"], 16) == 0
    rig.finish(controller)
