from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import (
    DEADLINE_S,
    ChildHandle,
    KeeperRig,
    forget,
    is_alive,
    keeper_rig,
    spawn_of,
    wait_readable,
    wait_until,
)
from mmsup.ipc import exit_codes, paths
from mmsup.ipc.memory.status_page import Activity, StatusPageReader, StatusPageWriter
from mmsup.ipc.messages.keeper_control import (
    CheckpointPart,
    ChildExited,
    ForgetChild,
    KeeperInventory,
    NotifySystemd,
    ReloadRequested,
    SaveCheckpoint,
    ShutdownFinished,
    SignalChild,
    SpawnFailed,
    StopReason,
    TerminateRequested,
)
from mmsup.ipc.transport.control_channel import ControlChannel

pytestmark = pytest.mark.slow
COUNTER_TABLES = [f"tally:{seat}" for seat in range(5)]
"""Of two gateways: each may have a successor during an upgrade, and there is one standby."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def descriptors_of(pid: int) -> dict[int, str]:
    """Descriptors with their targets; that of the listing itself is closed by now."""
    found: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def arguments_of(pid: int) -> dict[str, int]:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return {name: int(fd) for name, _, fd in (word.rpartition("=") for word in words) if name and fd.isdigit()}


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# Messages and descriptors.


def test_the_first_message_to_a_controller_has_settings_addresses_and_pid(rig: KeeperRig) -> None:
    controller = rig.controller()
    inventory = controller.receive(KeeperInventory)
    assert inventory.keeper_pid == rig.pid
    assert inventory.settings == rig.settings.to_json()
    assert (inventory.generation, inventory.checkpoint_parts, inventory.children, inventory.stopping) == (
        1,
        0,
        0,
        False,
    )
    assert inventory.addresses["control"] == paths.control_socket(rig.settings.runtime_dir)
    host, _, port = inventory.addresses["http"].rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S):
        pass  # not served yet, but not refused
    assert controller.names == ["control", "lifeline", "listen:control", "page"]
    rig.finish(controller)


def test_a_child_has_exactly_its_descriptors_and_its_environment(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, gateways=2) as rig:
        controller = rig.ready_controller()
        waiter = python("print('here', flush=True); import time; time.sleep(1000)")
        child = controller.spawn("gateway.0.1", *waiter, listeners=("http",), counter_tables=True, env={"ONLY": "this"})
        assert child.output() == b"here\n"
        named = arguments_of(child.pid)
        assert list(named) == ["lifeline", "control", "page", "crash", "listen:http", *COUNTER_TABLES]
        assert set(descriptors_of(child.pid)) == {0, 1, 2, *named.values()}
        assert Path(f"/proc/{child.pid}/environ").read_bytes() == b"ONLY=this\0"
        found = descriptors_of(child.pid)
        assert found[0] == "/dev/null"
        assert found[1] == found[2] == os.readlink(f"/proc/self/fd/{child.log}")
        assert found[named["page"]] == os.readlink(f"/proc/self/fd/{child.page}")
        assert found[named["crash"]] == os.readlink(f"/proc/self/fd/{child.crash}")
        assert not set(found.values()) & {rig.settings.state_dir, paths.lock_file(rig.settings.state_dir)}
        rig.finish(controller)


def test_a_child_runs_in_its_own_session_with_plain_signals_and_a_private_mask(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1", oom_score_adj=123, cwd="/usr")
    wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "sleep\n", "the shell gave way")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child.pid}/status").read_text().splitlines())
    # Signals 32 and 33 are libc's own: who ignores them hands that on, and no program can change it.
    ours = ~(1 << 31 | 1 << 32)
    assert {name: int(status[name], 16) & ours for name in ("SigBlk", "SigIgn", "SigCgt")} == dict.fromkeys(
        ("SigBlk", "SigIgn", "SigCgt"), 0
    )
    assert status["Umask"] == "0077"
    assert os.getsid(child.pid) == child.pid
    assert os.readlink(f"/proc/{child.pid}/cwd") == "/usr"
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "123\n"
    rig.finish(controller)


def test_the_five_descriptors_lead_to_the_child(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    code = """
import os, sys
from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.transport.control_channel import ControlChannel
named = dict(each.split("=") for each in sys.argv[1:])
StatusPageWriter(int(named["page"])).set_activity(Activity.BUSY, 7)
os.write(int(named["crash"]), b"Fatal Python error")
line = ControlChannel.from_fd(int(named["control"]))
line.send(b"hello")
print("printed", flush=True)
os.read(int(named["lifeline"]), 1)
"""
    child = controller.spawn("worker.1.1", *python(code))
    assert child.output() == b"printed\n"
    line = ControlChannel.from_fd(os.dup(child.control))
    assert line.receive() == (b"hello", [])
    line.close()
    assert os.read(child.crash, 100) == b"Fatal Python error"
    assert StatusPageReader(child.page).read().activity is Activity.BUSY
    rig.finish(controller)


@pytest.mark.parametrize(
    ("script", "status", "number"),
    [("exit 3", 3, 0), ("exit 0", 0, 0), ("kill -SEGV $$", 0, signal.SIGSEGV), ("kill -KILL $$", 0, signal.SIGKILL)],
)
def test_the_exit_of_a_child_is_reported_with_its_status_or_signal(
    rig: KeeperRig, script: str, status: int, number: int
) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1", "/bin/sh", "-c", script)
    assert controller.receive(ChildExited) == ChildExited("worker.1.1", child.pid, status, number)
    wait_until(lambda: not Path(f"/proc/{child.pid}").exists(), "reaped")
    rig.finish(controller)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"argv": ("/nowhere/python",)}, "No such file or directory: '/nowhere/python'"),
        ({"argv": ()}, "IndexError"),
        ({"argv": ("/bin/true\0",)}, "null byte"),
        ({"cwd": "/nowhere"}, "'/nowhere'"),
        ({"procs_files": ("/nowhere/cgroup.procs",)}, "/nowhere/cgroup.procs"),
        ({"listeners": ("grpc",)}, "no listener 'grpc'"),
    ],
)
def test_a_failed_start_is_reported_with_the_reason(
    rig: KeeperRig, fields: dict[str, tuple[str, ...]], text: str
) -> None:
    controller = rig.ready_controller()
    controller.send(spawn_of("worker.1.1", **fields))
    failed = controller.receive(SpawnFailed)
    assert failed.token == "worker.1.1"
    assert text in failed.text
    controller.spawn("worker.1.1")  # the token is free again, and the keeper as before
    wait_until(lambda: len(children_of(rig.pid)) == 2, "only the controller and the child are left")
    rig.finish(controller)


def test_a_token_in_use_is_refused(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    controller.send(spawn_of("worker.1.1"))
    assert "already" in controller.receive(SpawnFailed).text
    assert is_alive(child.pid)
    rig.finish(controller)


def test_a_signal_goes_to_the_child_alone_or_to_its_session(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    nap = "while :; do sleep 0.01; done"
    alone = controller.spawn("worker.1.1", "/bin/sh", "-c", f"trap 'exit 5' USR1; ({nap}) & {nap}")
    wait_until(lambda: len(session_of(alone.pid)) >= 3, "the shell has its own child")
    controller.send(SignalChild("worker.1.1", signal.SIGUSR1))
    assert controller.receive(ChildExited).status == 5
    together = controller.spawn("worker.2.1", "/bin/sh", "-c", "sleep 1000 & sleep 1000")
    wait_until(lambda: len(session_of(together.pid)) == 3, "the shell has its own children")
    controller.send(SignalChild("worker.2.1", signal.SIGTERM, whole_session=True))
    assert controller.receive(ChildExited).signal == signal.SIGTERM
    wait_until(lambda: not session_of(together.pid), "all of the session are gone")
    controller.send(SignalChild("worker.2.1", signal.SIGTERM))  # too late, without effect
    controller.send(SignalChild("unknown", signal.SIGTERM))
    controller.spawn("worker.3.1")
    rig.finish(controller)


def session_of(leader: int) -> list[int]:
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == leader and is_alive(int(name)):
                    found.append(int(name))
            except ProcessLookupError:
                continue
    return found


# Restarts of the controller.


def test_a_new_controller_finds_every_child_and_every_death_not_yet_forgotten(rig: KeeperRig) -> None:
    first = rig.ready_controller()
    living = first.spawn("worker.1.1")
    dead = first.spawn("worker.2.1")
    gone = first.spawn("worker.3.1")
    for child in (dead, gone):
        first.send(SignalChild(child.token, signal.SIGKILL))
        first.receive(ChildExited)
    first.send(ForgetChild("worker.3.1"))
    first.send(SaveCheckpoint("a", "a record"))
    first.send(SaveCheckpoint("b", "another one"))
    first.send(SaveCheckpoint("b", ""))
    StatusPageWriter(living.page).set_activity(Activity.BUSY, 1)
    first.spawn("worker.4.1")  # answered after all of the above was done
    os.kill(first.pid, signal.SIGKILL)

    second = rig.controller()
    inventory = second.receive(KeeperInventory)
    assert (inventory.generation, inventory.checkpoint_parts, inventory.children) == (2, 1, 3)
    assert second.receive(CheckpointPart).entries == {"a": "a record"}
    again = second.child()
    assert again.message == living.message
    assert StatusPageReader(again.page).read().activity is Activity.BUSY
    os.write(again.control, b"to the same child")
    assert second.child().message == dead.message
    assert second.receive(ChildExited) == ChildExited("worker.2.1", dead.pid, 0, signal.SIGKILL)
    assert second.child().token == "worker.4.1"
    second.send(SignalChild("worker.1.1", signal.SIGKILL))
    assert second.receive(ChildExited).token == "worker.1.1"
    rig.finish(second)


def test_an_exit_while_no_controller_runs_is_reported_to_the_next(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    os.kill(controller.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGKILL)
    wait_readable(child.pidfd, "death")
    os.kill(controller.pid, signal.SIGKILL)
    second = rig.controller()
    assert second.receive(KeeperInventory).children == 1
    assert second.child().pid == child.pid
    assert second.receive(ChildExited).signal == signal.SIGKILL
    rig.finish(second)


def test_a_controller_without_heartbeats_is_replaced(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, heartbeat_s=1.0) as rig:
        first = rig.ready_controller()
        child = first.spawn("worker.1.1")
        os.kill(first.pid, signal.SIGSTOP)
        second = rig.controller()
        assert second.receive(KeeperInventory).generation == 2
        assert second.child().pid == child.pid
        assert not is_alive(first.pid)
        assert is_alive(child.pid)
        rig.finish(second)


@pytest.mark.parametrize("garbage", [b"not JSON", b"[1]", b'["ChildExited","x",1,2,3]', b"[" * 5000])
def test_a_controller_that_sends_garbage_is_replaced(rig: KeeperRig, garbage: bytes) -> None:
    first = rig.ready_controller()
    child = first.spawn("worker.1.1")
    first.send_bytes(garbage)
    second = rig.controller()
    assert second.receive(KeeperInventory).children == 1
    assert second.child().pid == child.pid
    rig.finish(second)


def test_a_controller_that_does_not_read_delays_nothing(rig: KeeperRig) -> None:
    first = rig.ready_controller()
    tokens = [f"worker.{number}.1" for number in range(12)]
    children = [first.spawn(token, note="x" * 100_000) for token in tokens]  # far more than a socket holds
    os.kill(first.pid, signal.SIGKILL)
    second = rig.controller()
    os.kill(children[0].pid, signal.SIGKILL)
    wait_until(
        lambda: not Path(f"/proc/{children[0].pid}").exists(),
        "reaped while the controller has not received anything about it",
    )
    assert second.receive(KeeperInventory).children == 12
    assert [second.child().token for _ in tokens] == tokens
    assert second.receive(ChildExited).token == tokens[0]
    rig.finish(second)


def test_a_checkpoint_that_is_too_large_is_refused_and_the_keeper_lives(rig: KeeperRig) -> None:
    first = rig.ready_controller()
    first.send(SaveCheckpoint("a", "kept"))
    first.send(SaveCheckpoint("a", '"' * 97_900))  # twice as long once it is quoted
    first.spawn("worker.1.1")
    os.kill(first.pid, signal.SIGKILL)
    second = rig.controller()
    assert second.receive(KeeperInventory).checkpoint_parts == 1
    assert second.receive(CheckpointPart).entries == {"a": "kept"}


# The stop.


def test_sigterm_reaches_the_controller_and_its_end_of_the_drain_stops_everything(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    rig.process.send_signal(signal.SIGTERM)
    controller.receive(StopReason)
    controller.receive(TerminateRequested)
    assert is_alive(child.pid)
    rig.finish(controller)
    assert not is_alive(child.pid)
    assert not is_alive(controller.pid)
    assert os.listdir(rig.settings.runtime_dir) == ["lock"]


def test_the_exit_code_comes_from_the_controller(rig: KeeperRig) -> None:
    rig.finish(rig.ready_controller(), exit_codes.REFUSED)


def test_a_controller_may_exit_right_after_its_last_message(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    os.kill(rig.pid, signal.SIGSTOP)
    pidfd = os.pidfd_open(controller.pid)
    controller.send(ShutdownFinished(0))
    wait_readable(pidfd, "end of the controller")
    os.close(pidfd)
    os.kill(rig.pid, signal.SIGCONT)
    assert rig.process.wait(DEADLINE_S) == 0


def test_sighup_is_sent_as_reload(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    rig.process.send_signal(signal.SIGHUP)
    controller.receive(ReloadRequested)
    rig.finish(controller)


def test_a_second_signal_to_stop_kills_all_and_exits_1(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    rig.process.send_signal(signal.SIGTERM)
    controller.receive(StopReason)
    controller.receive(TerminateRequested)
    rig.process.send_signal(signal.SIGTERM)
    assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
    assert not is_alive(child.pid)
    assert not session_of(child.pid)


def test_a_drain_that_does_not_end_is_aborted(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, exit_timeout_s=0.2, margin_s=0.1) as rig:
        controller = rig.ready_controller()
        child = controller.spawn("worker.1.1")
        rig.process.send_signal(signal.SIGINT)
        controller.receive(StopReason)
        controller.receive(TerminateRequested)
        assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
        assert not is_alive(child.pid)


def test_a_controller_that_dies_during_the_drain_is_followed_by_one_that_drains(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    rig.process.send_signal(signal.SIGTERM)
    controller.receive(StopReason)
    controller.receive(TerminateRequested)
    os.kill(controller.pid, signal.SIGKILL)
    second = rig.controller()
    assert second.receive(KeeperInventory).stopping
    rig.finish(second)


def test_nothing_survives_the_keeper(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    children = [controller.spawn(f"worker.{number}.1") for number in range(3)]
    pidfd = os.pidfd_open(controller.pid)
    rig.process.kill()
    for child in children:
        wait_readable(child.pidfd, "death of a child")
    wait_readable(pidfd, "death of the controller")
    os.close(pidfd)


def test_the_lifeline_ends_with_the_keeper(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    code = """
import os, sys, time
lifeline = int(sys.argv[1].removeprefix("lifeline="))
if os.fork() == 0:
    print(os.read(lifeline, 1), flush=True)
time.sleep(1000)
"""
    child = controller.spawn("worker.1.1", *python(code))
    wait_until(lambda: len(children_of(child.pid)) == 1, "it forked")
    (grandchild,) = children_of(child.pid)
    pidfd = os.pidfd_open(grandchild)
    try:
        rig.process.kill()
        wait_readable(child.pidfd, "death")
        assert child.output() == b"b''\n"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_the_rest_of_a_session_ends_with_its_leader_and_a_bystander_does_not(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    victim = controller.spawn("worker.1.1", "/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait")
    bystander = controller.spawn("worker.2.1", "/bin/sh", "-c", "sleep 1000 & wait")
    wait_until(lambda: len(session_of(victim.pid)) == 3, "grandchildren")
    wait_until(lambda: len(session_of(bystander.pid)) == 2, "grandchildren")
    controller.send(SignalChild("worker.1.1", signal.SIGKILL))
    forget(controller, "worker.1.1")
    wait_until(lambda: not session_of(victim.pid), "the whole session is gone")
    wait_until(lambda: sorted(children_of(rig.pid)) == sorted([controller.pid, bystander.pid]), "orphans are reaped")
    assert len(session_of(bystander.pid)) == 2
    rig.finish(controller)


def test_an_orphan_that_left_its_session_is_gone_after_an_orderly_end(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1", "/bin/sh", "-c", "setsid sleep 1000 & wait")
    wait_until(lambda: len(children_of(child.pid)) == 1, "grandchild")
    (grandchild,) = children_of(child.pid)
    controller.send(SignalChild("worker.1.1", signal.SIGKILL))
    forget(controller, "worker.1.1")
    rig.finish(controller)
    assert not is_alive(grandchild)


# The keeper itself.


def test_a_second_keeper_names_the_first_and_touches_nothing(rig: KeeperRig) -> None:
    controller = rig.controller()
    address = controller.receive(KeeperInventory).addresses["control"]
    inode = os.stat(address).st_ino
    second = rig.launch()
    assert second.wait(DEADLINE_S) == exit_codes.ALREADY_RUNNING
    assert f"another mmsup (pid {rig.pid}) holds {rig.settings.state_dir}" in rig.stderr.read_text()
    assert os.stat(address).st_ino == inode
    rig.finish(controller)


def test_after_a_killed_keeper_another_can_start_at_once(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    child = controller.spawn("worker.1.1")
    stale = Path(paths.worker_socket(rig.settings.runtime_dir, 1, 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    rig.process.kill()
    rig.process.wait(DEADLINE_S)
    rig.process = rig.launch()
    second = rig.controller()
    assert second.receive(KeeperInventory).children == 0
    assert not stale.exists()
    wait_readable(child.pidfd, "death")
    rig.finish(second)


def test_the_keeper_is_small_and_imports_the_standard_library_alone(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    rss_kib = int(Path(f"/proc/{rig.pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    assert rss_kib < 24 * 1024
    assert len(os.listdir(f"/proc/{rig.pid}/task")) == 1
    rig.finish(controller)
    code = "import json, sys, mmsup.supervisor.keeper.__main__; print(json.dumps(sorted(sys.modules)))"
    before = json.loads(
        subprocess.check_output([sys.executable, "-c", code.replace(", mmsup.supervisor.keeper.__main__", "")])
    )
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    foreign = {name.partition(".")[0] for name in set(loaded) - set(before)} - sys.stdlib_module_names
    assert foreign == {"mmsup"}


def test_starting_and_forgetting_leaves_no_descriptor_behind(rig: KeeperRig) -> None:
    controller = rig.ready_controller()

    def cycle(token: str) -> None:
        controller.spawn(token, "/bin/true").close()
        forget(controller, token)
        controller.send(spawn_of(token, "/nowhere"))
        controller.receive(SpawnFailed)

    cycle("worker.1.1")
    before = len(os.listdir(f"/proc/{rig.pid}/fd"))
    for number in range(20):
        cycle(f"worker.2.{number}")
    wait_until(lambda: len(os.listdir(f"/proc/{rig.pid}/fd")) <= before, "nothing is left of twenty cycles")
    rig.finish(controller)


def test_a_listener_outlives_the_child_that_served_on_it(rig: KeeperRig) -> None:
    controller = rig.controller()
    host, _, port = controller.receive(KeeperInventory).addresses["http"].rpartition(":")
    code = """
import socket, sys
named = dict(each.rsplit("=", 1) for each in sys.argv[1:])
listener = socket.socket(fileno=int(named["listen:http"]))
listener.setblocking(True)
while True:
    listener.accept()[0].sendall(b"served")
"""
    first = controller.spawn("gateway.0.1", *python(code), listeners=("http",))
    with socket.create_connection((host, int(port)), DEADLINE_S) as client:
        assert client.recv(100) == b"served"
    controller.send(SignalChild(first.token, signal.SIGKILL))
    forget(controller, first.token)
    with socket.create_connection((host, int(port)), DEADLINE_S) as client:
        controller.spawn("gateway.0.2", *python(code), listeners=("http",))
        assert client.recv(100) == b"served"
    rig.finish(controller)


def test_counter_tables_are_the_same_for_every_gateway(rig: KeeperRig) -> None:
    controller = rig.ready_controller()
    code = """
import sys
from mmsup.ipc.memory.counters import CounterTable
named = dict(each.rsplit("=", 1) for each in sys.argv[1:])
table = CounterTable(int(named["tally:0"]))
table.row("m", "1").add("success")
print(table.values(("m", "1"))[0], flush=True)
"""
    for generation in (1, 2):
        child = controller.spawn(f"gateway.0.{generation}", *python(code), counter_tables=True)
        assert child.output() == b"%d\n" % generation
        forget(controller, child.token)
    rig.finish(controller)


def test_systemd_receives_the_notifications_of_the_controller_and_the_pings_of_the_keeper(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE_S)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        with keeper_rig(tmp_path, environ=environ) as rig:
            controller = rig.ready_controller()
            child: ChildHandle = controller.spawn("worker.1.1")
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child.pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{controller.pid}/environ").read_bytes()
            controller.send(NotifySystemd("READY=1"))
            received = [systemd.recv(1000)]
            while b"READY=1" not in received or received.count(b"WATCHDOG=1") < 3:
                received.append(systemd.recv(1000))
            rig.process.send_signal(signal.SIGTERM)
            while received[-1] != b"STOPPING=1":
                received.append(systemd.recv(1000))
            rig.finish(controller)


def test_a_port_in_use_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with keeper_rig(tmp_path, http_port=port) as rig:
            assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
            assert f"http: cannot listen on 127.0.0.1:{port}: another program uses it" in rig.stderr.read_text()
            assert os.listdir(rig.settings.runtime_dir) == ["lock"]


@pytest.mark.parametrize("argument", ["", "settings=99", "settings=x"])
def test_without_settings_the_keeper_prints_how_it_is_started(argument: str) -> None:
    argv = [sys.executable, "-m", "mmsup.supervisor.keeper", *[argument] * bool(argument)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == exit_codes.USAGE
    assert "mmsup serve" in done.stderr
    assert "Traceback" not in done.stderr
