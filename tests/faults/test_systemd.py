"""The shipped unit under a real systemd in a sandbox: start, reload, stop, kill, watchdog, out of memory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engines.build import write_fault_model, write_python
from harness.bystander import Bystander
from harness.server import START_S, eventually
from harness.systemd.connecting_clients import ConnectingClients
from harness.systemd.sandbox import REFUSED, UNSHARE, Sandbox, missing_requirement
from harness.systemd.service import MODELS, SystemdSandbox, SystemdService, await_end, cannot_boot
from harness.victim import Victim
from mmsup.ipc.specs import TensorSpec

needs_sandbox = pytest.mark.skipif(bool(missing_requirement()), reason=f"no sandbox: {missing_requirement()}")
needs_systemd = pytest.mark.skipif(bool(cannot_boot()), reason=f"no systemd to boot: {cannot_boot()}")
pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.ns, needs_sandbox]

X = (TensorSpec("x", "FP32", (-1,)),)
Y = (TensorSpec("y", "FP32", (-1,)),)
ANSWER = """
    def infer(self, inputs):
        return {"y": inputs["x"]}
"""
HONEST = f"class Model:{ANSWER}"
HELD = f"""
import pathlib, time


class Model:
    def load(self, context):
        while not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.005)
{ANSWER}"""
PARENT = f"""
import subprocess


class Model:
    def load(self, context):
        self.child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
{ANSWER}"""


@pytest.fixture(scope="module")
def booted() -> Iterator[SystemdSandbox]:
    """One systemd for all tests of this file."""
    made = SystemdSandbox()
    try:
        models = made.sandbox.path(MODELS)
        write_python(models, "bystander", HONEST, X, Y)
        write_fault_model(models, "victim", hang_limit="30s")
        made.install("mmsup")
        yield made
    finally:
        made.remove()


@pytest.fixture
def service(booted: SystemdSandbox) -> Iterator[SystemdService]:
    """The service, running."""
    made = SystemdService(booted)
    if not made.is_active():
        made.start()
    try:
        yield made
    except BaseException:
        print(made.log())
        raise


def answers(service: SystemdService, model: str = "bystander") -> bool:
    http = service.http()
    try:
        return http.infer(model, x=("FP32", [1], [1.0]))[0] == 200
    finally:
        http.close()


def forget(service: SystemdService, model: str) -> None:
    """Unload and delete a model."""
    service.ctl("unload", name=model)
    shutil.rmtree(service.repository / model)


# The sandbox.


def test_a_sandbox_in_which_something_of_the_machine_can_be_written_to_is_refused() -> None:
    """Checks the check: a second writable file system, as /home may be one."""
    hole = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount -t tmpfs hole /home && exec "$@"',
        "sh",
    ]
    seal = Sandbox.entry_command("canary", "sh", "-c", "echo not refused")
    done = subprocess.run([*hole, *UNSHARE, *seal], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert "/home can be written to" in done.stderr


def test_a_sandbox_outside_namespaces_of_its_own_is_refused() -> None:
    here = subprocess.run(
        Sandbox.entry_command("canary", "echo", "not refused"), capture_output=True, text=True, check=False
    )
    assert (here.returncode, here.stdout) == (REFUSED, "")


# The life of the service.


@needs_systemd
def test_the_service_is_ready_only_when_every_model_has_its_verdict_and_then_it_answers(booted: SystemdSandbox) -> None:
    service = SystemdService(booted)
    write_python(service.repository, "held", HELD, X, Y)
    booted.systemctl("start", "--no-block", "mmsup")
    eventually(lambda: "worker_spawn" in service.log(), "the load has begun", START_S)
    assert service.show()["ActiveState"] == "activating"
    (service.repository / "held" / "1" / "go").touch()
    booted.systemctl("start", "mmsup")
    shown = service.show()
    assert shown["ActiveState"] == "active"
    assert answers(service, "held")
    assert answers(service)
    status = service.status()
    assert int(shown["MainPID"]) == status["keeper"]["pid"]
    assert shown["StatusText"] == "ready"
    assert shown["NRestarts"] == "0"
    assert all(each.uids().real for each in service.all_processes()), "nothing of it is root's"
    forget(service, "held")


@needs_systemd
def test_each_worker_has_a_group_below_the_services_own_and_ends_as_a_whole(service: SystemdService) -> None:
    write_python(service.repository, "parent", PARENT, X, Y)
    service.ctl("load", name="parent")
    home = next(service.groups().glob("mmsup_*"))
    groups = {group_of(home, service.keeper().pid)}
    for name in ("bystander", "victim", "parent"):
        groups.add(group_of(home, service.systemd.sandbox.host_pid(service.pid(name))))
    assert len(groups) == 4, groups
    # No machine of the tests gives memory to v2; then it is said who keeps the caps.
    isolation = service.events("server_start")[-1]["text"]
    assert "cgroup v2: delegated" in isolation
    has_memory = "memory" in (service.groups() / "cgroup.controllers").read_text().split()
    assert has_memory or "no memory controller: RLIMIT_DATA and memory checks enforce the caps" in isolation
    worker = service.systemd.sandbox.host_pid(service.pid("parent"))
    group = home / group_of(home, worker)
    (child,) = [psutil.Process(pid) for pid in members(group) if pid != worker]
    with Bystander(service, "bystander"):
        os.kill(worker, signal.SIGKILL)
        await_end([child])
        eventually(lambda: not group.exists(), "the group is removed")
        service.await_event("worker_ready", "parent", 2)
    forget(service, "parent")


def members(group: Path) -> list[int]:
    return [int(each) for each in (group / "cgroup.procs").read_text().split()]


def group_of(home: Path, pid: int) -> str:
    (name,) = [each.name for each in home.iterdir() if each.is_dir() and pid in members(each)]
    return name


@needs_systemd
@pytest.mark.cgroup1
@pytest.mark.fault("F15")
def test_a_worker_that_the_kernel_takes_for_memory_does_not_stop_the_service(service: SystemdService) -> None:
    memory = [each for each in service.systemd.sandbox.groups if (each / "memory.limit_in_bytes").exists()]
    if not memory:
        pytest.skip("no cgroup v1 memory hierarchy")
    tight = memory[0] / "tight"
    tight.mkdir()
    (tight / "memory.limit_in_bytes").write_text(str(32 << 20))
    before = service.show()
    victim = Victim(service, "victim")
    deaths = len(service.events("worker_exit", "victim"))
    (tight / "cgroup.procs").write_text(str(service.systemd.sandbox.host_pid(service.pid("victim"))))
    with Bystander(service, "bystander"):
        status, reply = victim.send("allocate", 256)
        assert status == 503, reply
        assert victim.death(deaths + 1)["sig"] == signal.SIGKILL
        assert "oom_kill 1" in (tight / "memory.oom_control").read_text()
        victim.assert_serves()
    after = service.show()
    assert (after["ActiveState"], after["MainPID"], after["NRestarts"]) == (
        "active",
        before["MainPID"],
        before["NRestarts"],
    )
    assert after["OOMPolicy"] == "continue"


@needs_systemd
def test_a_reload_takes_up_a_changed_model_in_the_same_main_process_and_costs_no_request(
    service: SystemdService,
) -> None:
    write_fault_model(service.repository, "changed", hang_limit="30s")
    service.ctl("load", name="changed")
    before = service.show()
    (service.repository / "changed" / "mmsup.yaml").write_text("hang_limit: 31s\n")
    with (
        ConnectingClients(service) as knocking,
        Bystander(service, "bystander", stays=False) as caller,
        Bystander(service, "victim", stays=False),
    ):
        service.systemd.systemctl("reload", "mmsup")
        service.await_event("model_reloaded", "changed")
        service.await_event("upgraded")
        caller.await_more(20)
    after = service.show()
    assert knocking.refused == []
    assert after["ActiveState"] == "active"
    assert after["MainPID"] == before["MainPID"]
    assert after["NRestarts"] == before["NRestarts"]
    forget(service, "changed")


@needs_systemd
@pytest.mark.fault("F25b")
def test_a_killed_keeper_is_followed_by_another_and_nobody_is_refused_meanwhile(service: SystemdService) -> None:
    everyone, ends = service.all_processes(), len(service.run_results())
    with ConnectingClients(service) as knocking:
        everyone[0].kill()
        await_end(everyone)
        assert answers(service), "it waited for the next keeper, and was served"
        knocking.await_more(20)
    assert knocking.refused == []
    service.systemd.systemctl("start", "mmsup")  # returns when it is ready
    assert service.run_results()[ends:] == ["signal"]
    assert service.status()["keeper"]["pid"] == int(service.show()["MainPID"])
    victim = Victim(service, "victim")
    victim.assert_serves()


@needs_systemd
@pytest.mark.fault("F25b", "F28b")
def test_a_keeper_that_hangs_is_killed_by_the_watchdog_and_clients_of_socket_files_too_wait_for_the_next(
    booted: SystemdSandbox,
) -> None:
    files_too = "Environment=MMSUP_HTTP_UNIX=/run/mmsup/http.sock"
    booted.install("mmsup", f"[Service]\nWatchdogSec=3\n{files_too}\n")  # 10 as shipped: a test has no such time
    service = SystemdService(booted)
    booted.systemctl("reset-failed")
    booted.systemctl("restart", "mmsup")
    files = {name: service.runtime_dir / name for name in ("http.sock", "control.sock")}
    was = {name: path.stat().st_ino for name, path in files.items()}
    asked = {
        "http.sock": b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "control.sock": b'{"verb": "status"}\n',
    }
    everyone, ends = service.all_processes(), len(service.run_results())
    with ConnectingClients(service) as knocking, contextlib.ExitStack() as open_until_answered:
        everyone[0].suspend()
        await_end(everyone)
        waiting: dict[str, socket.socket] = {}
        for name, question in asked.items():
            sock = waiting[name] = open_until_answered.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(60)
            sock.connect(str(files[name]))  # nobody is there to accept
            sock.sendall(question)
        assert waiting["http.sock"].recv(4096).startswith(b"HTTP/1.1 200 ")
        assert b'"keeper"' in waiting["control.sock"].recv(4096)
        assert answers(service)
        knocking.await_more(20)
    assert knocking.refused == []
    assert {name: path.stat().st_ino for name, path in files.items()} == was
    assert service.run_results()[ends:] == ["watchdog"]
    booted.install("mmsup")


@needs_systemd
@pytest.mark.fault("F31")
def test_a_stop_under_load_finishes_what_was_accepted_and_leaves_nothing(service: SystemdService) -> None:
    ends = len(service.run_results())
    everyone = service.all_processes()
    groups = service.groups()
    victim = Victim(service, "victim")
    call = victim.in_background("sleep", 1.0)
    victim.await_busy()
    service.systemd.systemctl("stop", "mmsup")
    status, reply = call.result()
    assert status == 200, reply
    shown = service.show()
    assert (shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]) == ("inactive", "success", "0")
    assert service.run_results()[ends:] == ["success"]
    await_end(everyone)
    assert not groups.exists()
    assert service.systemd.processes() == set()
    assert not service.runtime_dir.exists()
    assert os.listdir(service.systemd.sandbox.path("/dev/shm")) == []
    assert is_refused(service.systemd, 8000), "a service that was stopped holds no listener"


def is_refused(booted: SystemdSandbox, port: int) -> bool:
    with booted.sandbox.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@needs_systemd
def test_a_restart_with_another_port_holds_the_old_one_no_more(service: SystemdService) -> None:
    booted = service.systemd
    booted.install("mmsup", "[Service]\nEnvironment=MMSUP_HTTP_PORT=8001\n")
    try:
        booted.systemctl("reset-failed")
        booted.systemctl("restart", "mmsup")
        again = SystemdService(booted)
        assert again.address() == ("127.0.0.1", 8001)
        assert answers(again)
        assert is_refused(booted, 8000)
    finally:
        booted.install("mmsup")
        booted.systemctl("restart", "mmsup")
    assert answers(SystemdService(booted))


# What is not tried for ever.

OTHER = """
[Service]
RuntimeDirectory=
RuntimeDirectory={name}
StateDirectory=
StateDirectory={name}
Environment=MMSUP_RUNTIME_DIR=%t/{name} MMSUP_STATE_DIR=%S/{name} MMSUP_METRICS_PORT=-1
{more}
"""


@needs_systemd
def test_a_service_that_can_never_start_is_given_up_after_a_few_tries(service: SystemdService) -> None:
    """Its port is taken by the other service, which must not notice."""
    booted = service.systemd
    booted.install("mmsup-taken", OTHER.format(name="mmsup-taken", more="RestartSec=50ms"))
    taken = SystemdService(booted, "mmsup-taken")
    with Bystander(service, "bystander"):
        booted.systemctl("start", "--no-block", "mmsup-taken")
        eventually(lambda: len(taken.run_results()) >= 5, "five tries", START_S)
        shown = taken.await_shown(ActiveState="failed")
    assert int(shown["NRestarts"]) == int(shown["StartLimitBurst"]) == 5
    assert "another program uses it" in service.log()
    assert booted.systemctl("list-jobs", "--no-legend").strip() in ("", "No jobs running.")


@needs_systemd
def test_a_wrong_configuration_is_not_tried_again(booted: SystemdSandbox) -> None:
    booted.install("mmsup-wrong", OTHER.format(name="mmsup-wrong", more="Environment=MMSUP_HTTP_PORT=many"))
    started = booted.sandbox.run("systemctl", "start", "mmsup-wrong")
    assert started.returncode != 0
    shown = booted.show("mmsup-wrong")
    assert (shown["ActiveState"], shown["ExecMainStatus"], shown["NRestarts"]) == ("failed", "2", "0")
