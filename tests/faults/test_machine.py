"""Faults of the machine: reused pids, a full disk, unread output, a clock that jumps, leftovers of a former server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.build import write_fault_model
from harness.bystander import Bystander
from harness.constrained_server import (
    FakeClock,
    FewPidsServer,
    SmallDiskServer,
    UnreadOutputServer,
    needs_namespaces,
    needs_own_pid_max,
)
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Server, eventually, serving
from harness.victim import BYSTANDER, Victim, bystander_repository, victim
from mmsup.supervisor.linux import cgroup_backend

pytestmark = pytest.mark.slow
HOUR_S = 3600.0
T = TypeVar("T", bound=Server)


@contextlib.contextmanager
def ready(server: T) -> Iterator[T]:
    """As `serving`, for a subclass of Server."""
    try:
        server.await_ready()
        http = Http(server.address())
        http.infer(BYSTANDER, x=("FP32", [1], [0.0]))
        http.close()
        yield server
    except BaseException:
        print(server.log())
        raise
    finally:
        server.remove()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "repository").mkdir()
    return bystander_repository(tmp_path / "repository")


@pytest.mark.fault("F32")
def test_a_wall_clock_that_jumps_changes_nothing_but_what_people_read(repository: Path, tmp_path: Path) -> None:
    clock = FakeClock(tmp_path)
    with serving(repository, env=clock.env) as server:
        http = Http(server.address())
        http.infer(BYSTANDER, x=("FP32", [1], [0.0]))
        http.close()
        with victim(server, "clock", env=dict(clock.env)) as hurt:
            brain, seen = server.status()["brain"], len(server.events())
            for jump_s in (HOUR_S, -HOUR_S):
                call = hurt.in_background("sleep", 0.3)
                hurt.await_busy()
                clock.jump(jump_s)
                assert call.result()[0] == 200
                deaths = len(server.events("worker_exit", hurt.name))
                status, reply = hurt.send("hang", jump_s)
                assert (status, reply["code"]) == (504, "worker_hung")
                hurt.assert_serves()
                death = server.await_event("worker_exit", hurt.name, deaths + 1)
                told_s = datetime.fromisoformat(death["time"]).timestamp()
                assert abs(told_s - time.time() - jump_s) < 600.0, "the clock of the brain did not jump"
            since = {each["event"] for each in server.events()[seen:] if each.get("model") != hurt.name}
            assert not since, f"something else happened: {since}"
            assert server.status()["brain"] == brain
        assert server.stop() == 0


@pytest.mark.fault("F33")
@pytest.mark.root
@pytest.mark.ns
@needs_namespaces
@needs_own_pid_max
def test_numbers_of_processes_that_are_used_again_harm_nobody(repository: Path) -> None:
    with ready(FewPidsServer(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER)) as server:
        with victim(server, "churns", hang_limit="30s") as hurt:
            before = {key: server.status()[key] for key in ("brain", "gateways")}
            for count in range(1, 3):
                pid = server.pid(hurt.name)
                assert pid < FewPidsServer.NUMBERS
                assert hurt.send("kill", count)[0] == 503
                hurt.assert_serves()
                assert hurt.send("churn", FewPidsServer.NUMBERS)[0] == 200  # each number has been somebody's
                assert len(server.events("worker_exit", hurt.name)) == count
            assert {key: server.status()[key] for key in ("brain", "gateways")} == before
        assert server.stop() == 0


@pytest.mark.fault("F34")
@pytest.mark.root
@pytest.mark.ns
@needs_namespaces
def test_a_full_disk_of_logs_stops_nobody(repository: Path) -> None:
    write_fault_model(repository, "prints", hang_limit="30s")
    with ready(SmallDiskServer(repository)) as server:
        hurt = Victim(server, "prints")
        hurt.assert_serves()
        brain, before = server.status()["brain"], settled(server)
        with Bystander(server, BYSTANDER):
            for _ in range(2):
                assert hurt.send("print", 8)[0] == 200
                os.kill(server.pid(hurt.name), signal.SIGKILL)
                hurt.assert_serves()
            assert len(server.events("worker_exit", hurt.name)) == 2
        assert server.status()["brain"] == brain
        assert_clean(before, server)
        assert server.stop() == 0


@pytest.mark.fault("F34")
def test_an_output_that_nobody_reads_stops_nobody_and_what_was_lost_is_counted(repository: Path) -> None:
    with ready(UnreadOutputServer(repository, "--model-control-mode", "explicit", "--load-model", BYSTANDER)) as server:
        with victim(server, "talks") as hurt:
            for _ in range(3):
                server.ctl("unload", name=hurt.name)
                server.ctl("load", name=hurt.name)
            hurt.assert_serves()
            assert server.read()
            server.ctl("unload", name=hurt.name)
            server.ctl("load", name=hurt.name)
            assert "lost_lines" in eventually(server.read, "something to read")
        assert server.stop() == 0


class Scraper:
    """Reads the metrics repeatedly and checks that every text is valid and no counter falls."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._address = server.address("metrics")
        self._stop = threading.Event()
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.faults: list[str] = []
        self.scrapes = 0
        self._thread = threading.Thread(target=self._run, name="scraper")

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            http = Http(self._address, timeout_s=10.0)
            with contextlib.suppress(OSError):  # it was killed while it answered
                _, _, text = http.send("GET", "/metrics")
                self._take(text.decode())
            http.close()

    def _take(self, text: str) -> None:
        self.scrapes += 1
        for each in text_string_to_metric_families(text):
            if each.type not in ("counter", "histogram"):
                continue
            for name, labels, value, *_ in each.samples:
                key = (name, tuple(sorted(labels.items())))
                if value < self._last.get(key, 0.0):
                    self.faults.append(f"{key} fell from {self._last[key]} to {value}")
                self._last[key] = value


@pytest.mark.fault("F35")
@pytest.mark.parametrize("gateways", [1, 2])
def test_no_counter_falls_while_anything_is_started_again(repository: Path, gateways: int) -> None:
    flags = ("--gateways", str(gateways), "--model-control-mode", "explicit", "--load-model", BYSTANDER)
    with serving(repository, *flags) as server:
        write_fault_model(repository, "counted", hang_limit="1s")
        server.ctl("load", name="counted")
        hurt = Victim(server, "counted")
        hurt.assert_serves()
        with Scraper(server) as scraper:
            kills: list[Callable[[], int]] = [
                lambda: server.pid("counted"),
                lambda: int(server.status()["gateways"][0]["pid"]),
                lambda: int(server.status()["brain"]["pid"]),
                lambda: server.pid("counted"),
            ]
            for pid_of in kills:
                os.kill(pid_of(), signal.SIGKILL)
                seen = scraper.scrapes
                eventually(lambda seen=seen: scraper.scrapes > seen + 3, "scrapes after it")  # type: ignore[misc] # bound now
                eventually(lambda: _serves(hurt), "it serves again")
        assert not scraper.faults, scraper.faults[:5]
        assert scraper.scrapes > 10
        assert server.gauge("nv_inference_request_success", model="counted") >= 4
        assert server.stop() == 0


def _serves(hurt: Victim) -> bool:
    with contextlib.suppress(OSError):
        return hurt.send()[0] == 200
    return False


LEFT = 100


@pytest.mark.fault("F37")
@pytest.mark.root
@pytest.mark.cgroup1
def test_leftovers_of_a_former_life_are_swept_and_nothing_of_another_server(repository: Path) -> None:
    with serving(repository) as other, serving(repository) as server, Bystander(other, BYSTANDER):
        before = settled(other)
        theirs = planted(other, 10)  # its locks are held: nothing of it is a leftover
        everyone = server_processes(server)
        server.process.kill()
        server.process.wait()
        ours = planted(server, LEFT)
        strange = server.runtime_dir / "notes.txt"
        strange.write_text("not ours")
        holders = [inside(server, number) for number in range(3)]
        server.start_again()
        server.await_ready()
        assert [each for each in ours if os.path.lexists(each)] == []
        assert [each for each in theirs if not os.path.lexists(each)] == []
        assert strange.exists()
        assert {each.wait(30) for each in holders} == {-signal.SIGKILL}
        family_left = [each for each in everyone.processes if each.pid != server.process.pid]
        eventually(lambda: not any(each.is_running() for each in family_left), "whoever adopts orphans has reaped them")
        for each in theirs:
            each.rmdir() if each.is_dir() else each.unlink()
        strange.unlink()
        assert_clean(before, other)
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)


def groups(server: Server) -> list[Path]:
    top = cgroup_backend.top_name(str(server.state_dir))
    kinds = ("memory", "freezer", "pids", "cpu")
    return [
        Path("/sys/fs/cgroup") / kind / top for kind in kinds if Path("/sys/fs/cgroup", kind, "cgroup.procs").exists()
    ]


def planted(server: Server, count: int) -> list[Path]:
    """Plant what killed workers could have left: sockets, scratch folders, control groups."""
    made = []
    for number in range(count):
        life = f"w{900 + number}.1"
        path = server.runtime_dir / life
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
            left.bind(str(path))
        made.append(path)
        for folder in (server.state_dir / "scratch", *groups(server)):
            (folder / life).mkdir(parents=True)
            made.append(folder / life)
    return made


def inside(server: Server, number: int) -> subprocess.Popen[bytes]:
    """A process that is still alive in a control group of a former worker."""
    process = subprocess.Popen(["sleep", "600"])
    for folder in groups(server):
        (folder / f"w{900 + number}.1" / "cgroup.procs").write_text(str(process.pid))
    return process
