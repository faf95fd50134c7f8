"""All workers die at once: they are restarted a few at a time, by priority, and no request is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engines.build import write_fault_model
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Json, Server, serving
from harness.victim import Victim

pytestmark = pytest.mark.slow
NAMES = ("m0", "m1", "m2", "m3", "m4", "m5")
URGENT = ("m4", "m5")
AT_A_TIME = 2


def write_models(folder: Path) -> None:
    for name in NAMES:
        write_fault_model(folder, name, priority=1 if name in URGENT else 3, priority_levels=3)


def loads_at_once(events: list[Json]) -> int:
    """The largest number of concurrent loads."""
    now = most = 0
    for each in events:
        now += {"worker_spawn": 1, "worker_ready": -1}.get(each["event"], 0)
        most = max(most, now)
    return most


def first_pids(server: Server) -> dict[str, int]:
    return {name: server.pid(name) for name in NAMES}


@pytest.mark.fault("F9")
def test_all_workers_killed_at_once_come_back_in_turns_and_by_class(tmp_path: Path) -> None:
    write_models(tmp_path)
    with serving(tmp_path, "--model-load-thread-count", str(AT_A_TIME)) as server:
        before = settled(server)
        seen = len(server.events())
        for pid in first_pids(server).values():
            os.kill(pid, signal.SIGKILL)
        calls = [Victim(server, name).in_background() for name in NAMES]
        assert [each.result()[0] for each in calls] == [200] * len(NAMES)
        assert_clean(before, server)
        since = server.events()[seen:]
        assert len([each for each in since if each["event"] == "worker_exit"]) == len(NAMES)
        assert {each["sig"] for each in since if each["event"] == "worker_exit"} == {signal.SIGKILL}
        assert loads_at_once(since) <= AT_A_TIME
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)


@pytest.mark.fault("F9")
def test_those_of_a_higher_class_come_first(tmp_path: Path) -> None:
    write_models(tmp_path)
    with serving(tmp_path, "--model-load-thread-count", "1") as server:
        order = [each["model"] for each in server.events("worker_spawn")]
        assert sorted(order[:2]) == list(URGENT)
        # Their ends are heard of one by one; who was not first among the dead stands in one queue with all the others.
        seen = len(server.events("worker_spawn"))
        for pid in first_pids(server).values():
            os.kill(pid, signal.SIGKILL)
        for name in NAMES:
            server.await_event("worker_ready", name, 2)
        again = [each["model"] for each in server.events("worker_spawn")[seen:]]
        urgent = sorted(set(URGENT) - {again[0]})
        assert sorted(again[1 : 1 + len(urgent)]) == urgent, again
