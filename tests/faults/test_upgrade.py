"""The hot upgrade under load: every process is replaced, and no request fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.build import write_fault_model, write_identity_onnx
from harness.bystander import Bystander
from harness.installation import Installation
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.server import Http, Server, eventually, serving
from harness.victim import Victim
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow
MODELS = ("one", "two")
GROUP = ("left", "right")
"""Models that share a process."""
PACE_S = 0.2
"""Pause between the calls of a client whose connection is idle most of the time."""


class Visitor(threading.Thread):
    """Occasional calls, on one keep-alive connection or on a new one each time."""

    def __init__(self, server: Server, model: str, *, keeps: bool) -> None:
        super().__init__(name=f"visitor of {model}")
        self._address = server.address()
        self._model = model
        self._keeps = keeps
        self._stop_it = threading.Event()
        self._began = threading.Event()
        self.sent = 0
        self.failures: list[str] = []

    def run(self) -> None:
        http = Http(self._address)
        while not self._stop_it.wait(PACE_S if self._keeps else 0.01):
            self.sent += 1
            try:
                status, reply = http.infer(self._model, x=("FP32", [2], [float(self.sent), 2.0]))
                if status != 200 or reply["outputs"][0]["data"] != [float(self.sent), 2.0]:
                    self.failures.append(f"{status} {reply}")
            except OSError as error:
                self.failures.append(repr(error))
            self._began.set()
            if not self._keeps:
                http.close()
        http.close()

    def __enter__(self) -> Visitor:
        self.start()
        assert self._began.wait(30), "a visitor gets no answer"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_it.set()
        self.join(30)
        assert not self.failures, f"{len(self.failures)} of {self.sent}: {self.failures[:3]}"


@contextlib.contextmanager
def traffic(server: Server, others: Sequence[str] = ()) -> Iterator[None]:
    """Clients of every kind on both models, and one of each other; none may see a failure."""
    with contextlib.ExitStack() as callers:
        for model in others:
            callers.enter_context(Bystander(server, model, stays=False))
        for model in MODELS:
            callers.enter_context(Bystander(server, model, stays=False))
            callers.enter_context(Visitor(server, model, keeps=True))
            callers.enter_context(Visitor(server, model, keeps=False))
        yield


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    home = tmp_path / "models"
    for name in MODELS:
        write_identity_onnx(home, name)
    return home


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    return Installation(tmp_path / "installed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For upgrades that leave all as it was, but for who serves: one after the other, so that what each adds shows."""
    home = tmp_path_factory.mktemp("models")
    for name in MODELS:
        write_identity_onnx(home, name)
    with running(home) as server:
        yield server
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)


@contextlib.contextmanager
def running(repository: Path, installed: Installation | None = None, *flags: str) -> Iterator[Server]:
    more: dict[str, Any] = {"python": installed.python} if installed else {}
    with serving(repository, *flags, **more) as server:
        http = Http(server.address())
        for name in MODELS:
            assert http.infer(name, x=("FP32", [4], [1.0, 2.0, 3.0, 4.0]))[0] == 200
        http.close()
        yield server


def upgrade(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `mmsup ctl upgrade`."""
    argv = [server.python, "-m", "mmsup.supervisor.cli", "ctl", "--runtime-dir", str(server.runtime_dir), "upgrade"]
    return subprocess.run([*argv, *options], capture_output=True, text=True, check=False, timeout=120)


def processes(server: Server) -> dict[str, int]:
    """Pids of all serving processes by role, model and index; zygotes may come and go."""
    return {f"{each['role']} {each['model']} {place}": each["pid"] for place, each in enumerate(_rows(server))}


def zygotes(server: Server) -> set[int]:
    return {each["pid"] for each in server.ctl("ps")["processes"] if each["role"] == "zygote"}


def _rows(server: Server) -> list[dict[str, Any]]:
    rows = [each for each in server.ctl("ps")["processes"] if each["state"] != "draining" and each["role"] != "zygote"]
    return sorted(rows, key=lambda each: (each["role"], each["model"]))


def assert_followed(before: dict[str, int], after: dict[str, int]) -> None:
    """Only the keeper is still the same process."""
    assert before.keys() == after.keys()
    same = [role for role in before if before[role] == after[role]]
    assert [role.split()[0] for role in same] == ["keeper"]


@pytest.mark.fault("F30")
def test_an_upgrade_under_load_costs_no_request(repository: Path, installed: Installation) -> None:
    for name in GROUP:
        write_identity_onnx(repository, name)
        (repository / name / "mmsup.yaml").write_text("group: shared\n")
    with running(repository, installed, "--gateways", "2") as server:
        http = server.http()
        for name in GROUP:
            assert http.infer(name, x=("FP32", [1], [1.0]))[0] == 200
        http.close()
        before, old, old_zygotes = settled(server), processes(server), zygotes(server)
        with traffic(server, GROUP):
            installed.change("__init__.py", '"0.1.0"', '"0.2.0"')
            installed.change("supervisor/keeper/bootstrap.py", "keeper_renewed", "keeper_of_another_version")
            done = upgrade(server)
            assert done.returncode == 0, done.stderr + server.log()
        assert server.status()["version"] == "0.2.0"
        assert '"keeper_of_another_version"' in server.log()
        assert_followed(old, processes(server))
        assert server.pid("left") == server.pid("right"), "one process, as before"
        eventually(lambda: not old_zygotes & zygotes(server), "no zygote has the old code")
        assert "the keeper becomes the new program" in done.stderr
        assert done.stdout.startswith("upgraded after ")
        assert not server.events("worker_exit")
        assert not server.events("gateway_exit")
        assert_clean(before, server)
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)


@pytest.mark.fault("F30")
def test_code_that_does_not_compile_is_refused_and_everything_lives_on(
    repository: Path, installed: Installation
) -> None:
    with running(repository, installed) as server:
        before, old = settled(server), processes(server)
        with traffic(server):
            installed.change("supervisor/keeper/keeper.py", "class Keeper:", "class Keeper")
            done = upgrade(server)
            assert done.returncode == 1
            assert "not upgraded" in done.stderr
            assert "SyntaxError" in done.stderr
            assert "Traceback" not in done.stderr
        assert processes(server) == old
        installed.change("supervisor/keeper/keeper.py", "class Keeper\n", "class Keeper:\n")
        for file, good, bad in (
            ("ipc/messages/handshake.py", "WIRE_VERSION: Final = ", "WIRE_VERSION: Final = 7"),
            (
                "supervisor/controller/controller.py",
                "from mmsup.supervisor.controller.shutdown import finish, shut_down\n",
                "import mmsup.supervisor.nothing\n",
            ),
            ("supervisor/controller/recovery.py", "class ServerRecord:\n", "class ServerRecord:\n    another: int\n"),
        ):
            installed.change(file, good, bad)
            done = upgrade(server)
            assert done.returncode == 1, file
            assert "not upgraded" in done.stderr, done.stderr
            if bad.startswith("WIRE_VERSION"):  # its digit is set before the present one
                assert f"speaks wire 7{WIRE_VERSION}, the running one {WIRE_VERSION}: a restart" in done.stderr
            installed.change(file, bad, good)
        assert processes(server) == old
        assert_clean(before, server)


@pytest.mark.fault("F30")
def test_a_gateway_of_the_new_code_that_does_not_come_up_leaves_the_old_one_serving(
    repository: Path, installed: Installation
) -> None:
    with running(repository, installed) as server:
        before, old = settled(server), processes(server)
        with traffic(server):
            installed.change("gateway/__main__.py", "import uvloop\n", "import uvloop_of_another_planet as uvloop\n")
            done = upgrade(server)
            assert done.returncode == 1
            assert "no gateway of the new code comes up" in done.stderr
        now = processes(server)
        assert [role for role in old if old[role] != now[role]] == ["brain  0"]
        assert_clean(before, server)
        installed.change("gateway/__main__.py", "import uvloop_of_another_planet as uvloop\n", "import uvloop\n")
        with traffic(server):
            assert upgrade(server).returncode == 0
        assert_followed(old, processes(server))
        assert_clean(before, server)


@pytest.mark.fault("F30")
def test_a_worker_whose_successor_does_not_load_stays(repository: Path) -> None:
    write_fault_model(repository, "victim", hang_limit="30s")
    with running(repository) as server:
        before, old = settled(server), processes(server)
        model = repository / "victim" / "1" / "model.py"
        good = model.read_text()
        with traffic(server), Bystander(server, "victim", stays=False):
            stamp = model.stat()
            model.write_text(good.replace("import collections", "import nothing_of_this_name", 1))
            os.utime(model, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            done = upgrade(server)
        assert done.returncode == 1
        assert "upgraded, but not all" in done.stderr
        assert "of victim/1 stays: " in done.stderr
        assert "nothing_of_this_name" in done.stderr
        now = processes(server)
        assert [role.split()[:-1] for role in old if old[role] == now[role]] == [["keeper"], ["worker", "victim"]]
        assert server.model("victim")["state"] == "ready"
        assert_clean(before, server)


@pytest.mark.fault("F30")
def test_a_controller_that_is_killed_in_mid_upgrade_is_followed_by_one_that_goes_on(repository: Path) -> None:
    write_fault_model(repository, "slow", hang_limit="30s", on_load="sleep", on_load_amount=1.0)
    with running(repository) as server:
        before, old = settled(server), processes(server)
        with traffic(server), upgrading(server) as asked:
            server.await_event("gateway_stopped")
            eventually(lambda: len(server.model("slow")["instances"]) == 2, "the successor of a worker")
            os.kill(server.status()["brain"]["pid"], signal.SIGKILL)
            code, text = asked.result()
            assert code == 0, text
        assert_followed(old, processes(server))
        assert not server.events("worker_exit", "one")
        assert_clean(before, server)


@pytest.mark.fault("F30")
@pytest.mark.parametrize(
    "step", ["trying the code", "another controller takes over", "serves in the place of", "replacing"]
)
def test_a_controller_may_be_killed_at_any_step(shared: Server, step: str) -> None:
    server = shared
    before, old = settled(server), processes(server)
    killed: list[str] = []

    def hear(line: dict[str, Any]) -> None:
        if step in line["progress"] and not killed:
            killed.append(step)
            with contextlib.suppress(psutil.NoSuchProcess):  # it may be leaving by itself
                for each in brains(server):
                    each.kill()

    with traffic(server):
        arguments = {"ticket": step, "force": True}
        result = control_client.call_server(str(server.runtime_dir), "upgrade", arguments, progress=hear)
    assert killed
    assert result["followed"] >= 1
    assert_followed(old, processes(server))
    # A successor that was coming up is begun anew by the next controller; nobody who serves dies.
    assert not [each for each in server.events("worker_exit") if each["pid"] in old.values()]
    assert_clean(before, server)


def brains(server: Server) -> list[psutil.Process]:
    """The live controllers, from /proc: one may be exiting."""
    return [
        each
        for each in psutil.Process(server.process.pid).children()
        if "mmsup.supervisor.controller" in each.cmdline()
    ]


@pytest.mark.fault("F30")
def test_a_new_gateway_that_is_killed_before_it_serves_is_followed_by_another(shared: Server) -> None:
    server, exits = shared, len(shared.events("gateway_exit"))
    before, old = settled(server), processes(server)
    with traffic(server), upgrading(server) as asked:
        (place,) = server.status()["gateways"]
        coming = eventually(lambda: _gateway_beside(server, place["pid"]), "a gateway beside the old one")
        coming.kill()
        code, text = asked.result()
        assert code == 0, text
    assert len(server.events("gateway_exit")) == exits + 1
    assert_followed(old, processes(server))
    assert_clean(before, server)


@pytest.mark.fault("F30")
def test_a_request_that_is_at_work_through_the_whole_upgrade_gets_its_answer(repository: Path) -> None:
    write_fault_model(repository, "long", hang_limit="60s")
    with running(repository) as server:
        before, old = settled(server), processes(server)
        victim = Victim(server, "long")
        call = victim.in_background("hold")
        victim.await_busy()
        with upgrading(server) as asked:
            eventually(lambda: len(server.model("long")["instances"]) == 2, "the successor of the worker")
            server.await_event("worker_ready", "long", 2)
            victim.assert_serves()
            assert not call.is_over
            (repository / "long" / "1" / "go").touch()
            assert call.result()[0] == 200
            code, text = asked.result()
            assert code == 0, text
        assert_followed(old, processes(server))
        assert_clean(before, server)


def test_a_second_upgrade_meanwhile_is_refused(shared: Server) -> None:
    refused: list[subprocess.CompletedProcess[str]] = []

    def hear(_: object) -> None:
        if not refused:
            refused.append(upgrade(shared))

    arguments = {"ticket": "the first", "force": True}
    result = control_client.call_server(str(shared.runtime_dir), "upgrade", arguments, progress=hear)
    assert result["followed"] >= 1
    assert refused[0].returncode == 1
    assert "an upgrade is under way already" in refused[0].stderr


def test_a_server_told_to_stop_in_mid_upgrade_stops(repository: Path) -> None:
    write_fault_model(repository, "slow", hang_limit="30s", on_load="sleep", on_load_amount=1.0)
    with running(repository) as server:
        everyone = server_processes(server)
        with upgrading(server) as asked:
            eventually(lambda: len(server.model("slow")["instances"]) == 2, "the successor of a worker")
            assert server.stop() == 0
            code, text = asked.result()
            assert code == 1
            assert "the server is draining" in text
        assert_gone(server, everyone)


class Asked:
    """An upgrade in a thread."""

    def __init__(self, server: Server) -> None:
        self._done: subprocess.CompletedProcess[str] | None = None
        self._thread = threading.Thread(target=self._run, args=(server,), name="ctl upgrade")
        self._thread.start()

    def _run(self, server: Server) -> None:
        self._done = upgrade(server)

    def result(self) -> tuple[int, str]:
        """Wait for its end: exit code and output."""
        self._thread.join(120)
        assert self._done is not None, "the upgrade has not ended"
        return self._done.returncode, self._done.stdout + self._done.stderr


@contextlib.contextmanager
def upgrading(server: Server) -> Iterator[Asked]:
    asked = Asked(server)
    try:
        yield asked
    finally:
        asked.result()


def _gateway_beside(server: Server, pid: int) -> psutil.Process | None:
    for each in psutil.Process(server.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if each.pid != pid and "mmsup.gateway" in each.cmdline():
                return each
    return None
