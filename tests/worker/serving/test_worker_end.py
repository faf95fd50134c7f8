"""A real worker process and its ends: asked for, by its model, by a hang, with its keeper."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.build import mode, write_fault_model
from engines.life import PATIENCE_S, Life, serving
from mmsup.ipc import exit_codes
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.worker_control import LoadProgress

pytestmark = pytest.mark.slow

X = np.arange(5, dtype=np.float32)


def test_stop_finishes_what_is_queued_then_unloads_and_exits_with_zero(repository: Path, tmp_path: Path) -> None:
    spec = write_fault_model(repository, "m")
    hold = Path(spec.directory, "hold")
    hold.touch()  # a DEALER forgets what it has not read when its peer goes: read first, then let it go
    with serving(spec, tmp_path) as (life, gateway):
        requests = [gateway.infer(mode("sleep", 0.1)), *[gateway.infer({"x": X}) for _ in range(10)]]
        gateway.send(*requests)
        while life.progress().activity is not Activity.BUSY:
            select.select([], [], [], 0.001)
        life.stop()
        assert [gateway.reply().id for _ in requests] == [each.id for each in requests]
        hold.unlink()
        assert life.ended() == exit_codes.SUCCESS
        assert "unloaded" in life.printed()
        assert life.progress().activity is Activity.STOPPING


@pytest.mark.parametrize(
    ("word", "amount", "status"),
    [
        ("exit", 3, 3),
        ("exit", 0, 0),
        ("sysexit", 5, 5),
        ("sysexit", 0, 0),
        ("segv", 0, -signal.SIGSEGV),
        ("abort", 0, -signal.SIGABRT),
        ("fpe", 0, -signal.SIGFPE),
        ("bus", 0, -signal.SIGBUS),
        ("kill", 0, -signal.SIGKILL),
    ],
)
def test_a_model_that_ends_its_process_shows_its_own_status_and_what_had_begun(
    word: str, amount: float, status: int, repository: Path, tmp_path: Path
) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        fatal, after = gateway.infer(mode(word, amount)), gateway.infer({"x": X})
        gateway.send(fatal, after)
        assert life.ended() == status
        assert life.page.started() == {fatal.id}
        assert life.progress().activity is Activity.BUSY
        os.set_blocking(life.crash, False)
        crashed = os.read(life.crash, 100) if status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE) else b"Fatal"
        assert crashed.startswith(b"Fatal")


@pytest.mark.parametrize("word", ["hang", "spin", "deadlock"])
def test_a_hang_shows_on_the_page_with_the_time_of_its_beginning(word: str, repository: Path, tmp_path: Path) -> None:
    with serving(write_fault_model(repository, "m"), tmp_path) as (life, gateway):
        request = gateway.infer(mode(word))
        gateway.send(request)
        while request.id not in life.page.started():
            select.select([], [], [], 0.001)
        seen = life.progress()
        select.select([], [], [], 0.2)
        now = life.progress()
        assert (now.activity, now.since_ns, now.heartbeat_ns) == (Activity.BUSY, seen.since_ns, seen.heartbeat_ns)
        life.process.send_signal(signal.SIGQUIT)  # its stacks, without its help
        deadline = PATIENCE_S
        while "model.py" not in life.printed() and deadline > 0:
            select.select([], [], [], 0.01)
            deadline -= 0.01
        assert "in harm" in life.printed()


def test_an_idle_worker_beats_and_a_stopped_one_does_not(repository: Path, tmp_path: Path) -> None:
    spec = replace(write_fault_model(repository, "m"), hang_limit_s=0.2)
    with serving(spec, tmp_path) as (life, gateway):
        gateway.ask({"x": X})
        first = life.progress()
        while life.progress().heartbeat_ns == first.heartbeat_ns:
            select.select([], [], [], 0.01)
        assert life.progress().activity is Activity.IDLE
        life.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, life.process.pid, os.WSTOPPED)
        stopped = life.progress().heartbeat_ns
        select.select([], [], [], 0.3)
        assert life.progress().heartbeat_ns == stopped
        life.process.send_signal(signal.SIGCONT)
        assert gateway.ask({"x": X}).code == ""


@pytest.mark.parametrize("when", ["loading", "idle", "at once"])
def test_a_worker_whose_keeper_is_gone_goes_too(when: str, repository: Path, tmp_path: Path) -> None:
    options = {"on_load": "sleep", "on_load_amount": 0.3} if when == "loading" else {}
    with Life(write_fault_model(repository, "m", **options), tmp_path) as life:
        if when != "at once":
            while not isinstance(life.hear(), LoadProgress):
                pass
        if when == "idle":
            life.ready()
        os.close(life.lifeline)
        life.lifeline = -1
        assert life.ended() == exit_codes.KEEPER_LOST


def test_a_keeper_that_closes_the_control_channel_ends_the_worker(repository: Path, tmp_path: Path) -> None:
    with Life(write_fault_model(repository, "m"), tmp_path) as life:
        life.ready()
        life.control.close()
        assert life.ended() == exit_codes.KEEPER_LOST
