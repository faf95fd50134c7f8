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
    KeeperRig,
    Kid,
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
    ChildExited,
    ForgetChild,
    KeeperInventory,
    NotifySystemd,
    ReloadRequested,
    SaveCheckpoint,
    ShutdownFinished,
    SignalChild,
    SpawnFailed,
    TerminateRequested,
)
from mmsup.ipc.transport.control_channel import ControlChannel

pytestmark = pytest.mark.slow
TALLIES = [f"tally:{place}" for place in range(5)]
"""Of two gateways: each may be upgraded, and one waits."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def descriptors_of(pid: int) -> dict[int, str]:
    """Descriptors that lead somewhere; those of closed listings are gone by now."""
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


# Who is told what.


def test_a_brain_hears_of_settings_addresses_and_pid_before_anything_else(rig: KeeperRig) -> None:
    brain = rig.brain()
    said = brain.hear(KeeperInventory)
    assert said.keeper_pid == rig.pid
    assert said.settings == rig.settings.to_json()
    assert (said.generation, said.checkpoint, said.children, said.stopping) == (1, "", 0, False)
    assert said.addresses["control"] == paths.control_socket(rig.settings.runtime_dir)
    host, _, port = said.addresses["http"].rpartition(":")
    with socket.create_connection((host, int(port)), DEADLINE_S):
        pass  # nobody serves yet, nobody is refused
    assert brain.names == ["control", "lifeline", "listen:control", "page"]
    rig.finish(brain)


def test_a_child_has_exactly_its_descriptors_and_its_environment(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, gateways=2) as rig:
        brain = rig.greeted_brain()
        waiter = python("print('here', flush=True); import time; time.sleep(1000)")
        kid = brain.spawn("gateway.0.1", *waiter, listeners=("http",), tallies=True, env={"ONLY": "this"})
        assert kid.output() == b"here\n"
        named = arguments_of(kid.pid)
        assert list(named) == ["lifeline", "control", "page", "crash", "listen:http", *TALLIES]
        assert set(descriptors_of(kid.pid)) == {0, 1, 2, *named.values()}
        assert Path(f"/proc/{kid.pid}/environ").read_bytes() == b"ONLY=this\0"
        found = descriptors_of(kid.pid)
        assert found[0] == "/dev/null"
        assert found[1] == found[2] == os.readlink(f"/proc/self/fd/{kid.log}")
        assert found[named["page"]] == os.readlink(f"/proc/self/fd/{kid.page}")
        assert found[named["crash"]] == os.readlink(f"/proc/self/fd/{kid.crash}")
        assert not set(found.values()) & {rig.settings.state_dir, paths.lock_file(rig.settings.state_dir)}
        rig.finish(brain)


def test_a_child_runs_in_its_own_session_with_plain_signals_and_a_private_mask(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1", oom_score_adj=123, cwd="/usr")
    wait_until(lambda: Path(f"/proc/{kid.pid}/comm").read_text() == "sleep\n", "the shell gave way")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{kid.pid}/status").read_text().splitlines())
    # Signals 32 and 33 are libc's own: who ignores them hands that on, and no program can change it.
    ours = ~(1 << 31 | 1 << 32)
    assert {name: int(status[name], 16) & ours for name in ("SigBlk", "SigIgn", "SigCgt")} == dict.fromkeys(
        ("SigBlk", "SigIgn", "SigCgt"), 0
    )
    assert status["Umask"] == "0077"
    assert os.getsid(kid.pid) == kid.pid
    assert os.readlink(f"/proc/{kid.pid}/cwd") == "/usr"
    assert Path(f"/proc/{kid.pid}/oom_score_adj").read_text() == "123\n"
    rig.finish(brain)


def test_the_five_descriptors_lead_to_the_child(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    code = """
import os, sys
from mmsup.ipc.page import Activity, PageWriter
from mmsup.ipc.seqpacket import Seqpacket
named = dict(each.split("=") for each in sys.argv[1:])
PageWriter(int(named["page"])).enter(Activity.BUSY, 7)
os.write(int(named["crash"]), b"Fatal Python error")
line = Seqpacket.of_descriptor(int(named["control"]))
line.send(b"hello")
print("printed", flush=True)
os.read(int(named["lifeline"]), 1)
"""
    kid = brain.spawn("worker.1.1", *python(code))
    assert kid.output() == b"printed\n"
    line = ControlChannel.from_fd(os.dup(kid.control))
    assert line.receive() == (b"hello", [])
    line.close()
    assert os.read(kid.crash, 100) == b"Fatal Python error"
    assert StatusPageReader(kid.page).read().activity is Activity.BUSY
    rig.finish(brain)


@pytest.mark.parametrize(
    ("script", "status", "number"),
    [("exit 3", 3, 0), ("exit 0", 0, 0), ("kill -SEGV $$", 0, signal.SIGSEGV), ("kill -KILL $$", 0, signal.SIGKILL)],
)
def test_the_end_of_a_child_is_told_as_the_kernel_tells_it(
    rig: KeeperRig, script: str, status: int, number: int
) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1", "/bin/sh", "-c", script)
    assert brain.hear(ChildExited) == ChildExited("worker.1.1", kid.pid, status, number)
    wait_until(lambda: not Path(f"/proc/{kid.pid}").exists(), "reaped")
    rig.finish(brain)


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
def test_what_cannot_be_started_is_said_with_the_reason(
    rig: KeeperRig, fields: dict[str, tuple[str, ...]], text: str
) -> None:
    brain = rig.greeted_brain()
    brain.say(spawn_of("worker.1.1", **fields))
    failed = brain.hear(SpawnFailed)
    assert failed.token == "worker.1.1"
    assert text in failed.text
    brain.spawn("worker.1.1")  # the token is free again, and the keeper as before
    wait_until(lambda: len(children_of(rig.pid)) == 2, "only the brain and the child are left")
    rig.finish(brain)


def test_a_token_in_use_is_refused(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    brain.say(spawn_of("worker.1.1"))
    assert "already" in brain.hear(SpawnFailed).text
    assert is_alive(kid.pid)
    rig.finish(brain)


def test_a_signal_goes_to_the_child_alone_or_to_its_session(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    nap = "while :; do sleep 0.01; done"
    alone = brain.spawn("worker.1.1", "/bin/sh", "-c", f"trap 'exit 5' USR1; ({nap}) & {nap}")
    wait_until(lambda: len(session_of(alone.pid)) >= 3, "the shell has its own child")
    brain.say(SignalChild("worker.1.1", signal.SIGUSR1))
    assert brain.hear(ChildExited).status == 5
    together = brain.spawn("worker.2.1", "/bin/sh", "-c", "sleep 1000 & sleep 1000")
    wait_until(lambda: len(session_of(together.pid)) == 3, "the shell has its own children")
    brain.say(SignalChild("worker.2.1", signal.SIGTERM, whole_session=True))
    assert brain.hear(ChildExited).signal == signal.SIGTERM
    wait_until(lambda: not session_of(together.pid), "all of the session are gone")
    brain.say(SignalChild("worker.2.1", signal.SIGTERM))  # too late, and nobody minds
    brain.say(SignalChild("nobody", signal.SIGTERM))
    brain.spawn("worker.3.1")
    rig.finish(brain)


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


# Brains come and go.


def test_a_new_brain_finds_every_child_and_every_death_not_yet_forgotten(rig: KeeperRig) -> None:
    first = rig.greeted_brain()
    living = first.spawn("worker.1.1")
    dead = first.spawn("worker.2.1")
    gone = first.spawn("worker.3.1")
    for kid in (dead, gone):
        first.say(SignalChild(kid.token, signal.SIGKILL))
        first.hear(ChildExited)
    first.say(ForgetChild("worker.3.1"))
    first.say(SaveCheckpoint("what was wanted"))
    StatusPageWriter(living.page).set_activity(Activity.BUSY, 1)
    first.spawn("worker.4.1")  # answered after all of the above was done
    os.kill(first.pid, signal.SIGKILL)

    second = rig.brain()
    said = second.hear(KeeperInventory)
    assert (said.generation, said.checkpoint, said.children) == (2, "what was wanted", 3)
    again = second.kid()
    assert again.message == living.message
    assert StatusPageReader(again.page).read().activity is Activity.BUSY
    os.write(again.control, b"to the same child")
    assert second.kid().message == dead.message
    assert second.hear(ChildExited) == ChildExited("worker.2.1", dead.pid, 0, signal.SIGKILL)
    assert second.kid().token == "worker.4.1"
    second.say(SignalChild("worker.1.1", signal.SIGKILL))
    assert second.hear(ChildExited).token == "worker.1.1"
    rig.finish(second)


def test_a_child_that_dies_while_no_brain_is_there_is_told_to_the_next(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    os.kill(brain.pid, signal.SIGSTOP)
    os.kill(kid.pid, signal.SIGKILL)
    wait_readable(kid.pidfd, "death")
    os.kill(brain.pid, signal.SIGKILL)
    second = rig.brain()
    assert second.hear(KeeperInventory).children == 1
    assert second.kid().pid == kid.pid
    assert second.hear(ChildExited).signal == signal.SIGKILL
    rig.finish(second)


def test_a_brain_that_stops_beating_is_replaced(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, beat_s=1.0) as rig:
        first = rig.greeted_brain()
        kid = first.spawn("worker.1.1")
        os.kill(first.pid, signal.SIGSTOP)
        second = rig.brain()
        assert second.hear(KeeperInventory).generation == 2
        assert second.kid().pid == kid.pid
        assert not is_alive(first.pid)
        assert is_alive(kid.pid)
        rig.finish(second)


@pytest.mark.parametrize("rubbish", [b"not JSON", b"[1]", b'["Exited","x",1,2,3]', b"[" * 5000])
def test_a_brain_that_talks_rubbish_is_replaced(rig: KeeperRig, rubbish: bytes) -> None:
    first = rig.greeted_brain()
    kid = first.spawn("worker.1.1")
    first.say_bytes(rubbish)
    second = rig.brain()
    assert second.hear(KeeperInventory).children == 1
    assert second.kid().pid == kid.pid
    rig.finish(second)


def test_a_brain_that_does_not_read_delays_nobody(rig: KeeperRig) -> None:
    first = rig.greeted_brain()
    tokens = [f"worker.{number}.1" for number in range(12)]
    kids = [first.spawn(token, note="x" * 100_000) for token in tokens]  # far more than a socket holds
    os.kill(first.pid, signal.SIGKILL)
    second = rig.brain()
    os.kill(kids[0].pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{kids[0].pid}").exists(), "reaped while the brain has not even heard of it")
    assert second.hear(KeeperInventory).children == 12
    assert [second.kid().token for _ in tokens] == tokens
    assert second.hear(ChildExited).token == tokens[0]
    rig.finish(second)


def test_too_much_to_remember_is_left_out_and_the_keeper_lives(rig: KeeperRig) -> None:
    first = rig.greeted_brain()
    first.say(SaveCheckpoint("kept"))
    first.say(SaveCheckpoint('"' * 97_900))  # twice as long once it is quoted
    first.spawn("worker.1.1")
    os.kill(first.pid, signal.SIGKILL)
    assert rig.brain().hear(KeeperInventory).checkpoint == "kept"


# The end.


def test_sigterm_is_told_and_finished_ends_everything(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    rig.process.send_signal(signal.SIGTERM)
    brain.hear(TerminateRequested)
    assert is_alive(kid.pid)
    rig.finish(brain)
    assert not is_alive(kid.pid)
    assert not is_alive(brain.pid)
    assert os.listdir(rig.settings.runtime_dir) == ["lock"]


def test_the_exit_code_is_what_the_brain_says(rig: KeeperRig) -> None:
    rig.finish(rig.greeted_brain(), exit_codes.REFUSED)


def test_a_brain_may_say_finished_and_be_gone(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    os.kill(rig.pid, signal.SIGSTOP)
    pidfd = os.pidfd_open(brain.pid)
    brain.say(ShutdownFinished(0))
    wait_readable(pidfd, "end of the brain")
    os.close(pidfd)
    os.kill(rig.pid, signal.SIGCONT)
    assert rig.process.wait(DEADLINE_S) == 0


def test_sighup_is_told_as_reload(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    rig.process.send_signal(signal.SIGHUP)
    brain.hear(ReloadRequested)
    rig.finish(brain)


def test_told_twice_to_stop_the_keeper_kills_all_and_exits_1(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    rig.process.send_signal(signal.SIGTERM)
    brain.hear(TerminateRequested)
    rig.process.send_signal(signal.SIGTERM)
    assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
    assert not is_alive(kid.pid)
    assert not session_of(kid.pid)


def test_a_drain_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with keeper_rig(tmp_path, exit_timeout_s=0.2, margin_s=0.1) as rig:
        brain = rig.greeted_brain()
        kid = brain.spawn("worker.1.1")
        rig.process.send_signal(signal.SIGINT)
        brain.hear(TerminateRequested)
        assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
        assert not is_alive(kid.pid)


def test_a_brain_that_falls_during_the_drain_is_followed_by_one_that_knows(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    rig.process.send_signal(signal.SIGTERM)
    brain.hear(TerminateRequested)
    os.kill(brain.pid, signal.SIGKILL)
    second = rig.brain()
    assert second.hear(KeeperInventory).stopping
    rig.finish(second)


def test_nothing_survives_the_keeper(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kids = [brain.spawn(f"worker.{number}.1") for number in range(3)]
    pidfd = os.pidfd_open(brain.pid)
    rig.process.kill()
    for kid in kids:
        wait_readable(kid.pidfd, "death of a child")
    wait_readable(pidfd, "death of the brain")
    os.close(pidfd)


def test_the_lifeline_ends_with_the_keeper(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    code = """
import os, sys, time
lifeline = int(sys.argv[1].removeprefix("lifeline="))
if os.fork() == 0:
    print(os.read(lifeline, 1), flush=True)
time.sleep(1000)
"""
    kid = brain.spawn("worker.1.1", *python(code))
    wait_until(lambda: len(children_of(kid.pid)) == 1, "it forked")
    (grandchild,) = children_of(kid.pid)
    pidfd = os.pidfd_open(grandchild)
    try:
        rig.process.kill()
        wait_readable(kid.pidfd, "death")
        assert kid.output() == b"b''\n"
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_the_rest_of_a_session_ends_with_its_leader_and_a_bystander_does_not(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    victim = brain.spawn("worker.1.1", "/bin/sh", "-c", "sleep 1000 & sleep 1000 & wait")
    bystander = brain.spawn("worker.2.1", "/bin/sh", "-c", "sleep 1000 & wait")
    wait_until(lambda: len(session_of(victim.pid)) == 3, "grandchildren")
    wait_until(lambda: len(session_of(bystander.pid)) == 2, "grandchildren")
    brain.say(SignalChild("worker.1.1", signal.SIGKILL))
    forget(brain, "worker.1.1")
    wait_until(lambda: not session_of(victim.pid), "the whole session is gone")
    wait_until(lambda: sorted(children_of(rig.pid)) == sorted([brain.pid, bystander.pid]), "orphans are reaped")
    assert len(session_of(bystander.pid)) == 2
    rig.finish(brain)


def test_an_orphan_that_left_its_session_is_gone_after_an_orderly_end(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1", "/bin/sh", "-c", "setsid sleep 1000 & wait")
    wait_until(lambda: len(children_of(kid.pid)) == 1, "grandchild")
    (grandchild,) = children_of(kid.pid)
    brain.say(SignalChild("worker.1.1", signal.SIGKILL))
    forget(brain, "worker.1.1")
    rig.finish(brain)
    assert not is_alive(grandchild)


# The keeper itself.


def test_a_second_keeper_says_who_holds_the_directory_and_touches_nothing(rig: KeeperRig) -> None:
    brain = rig.brain()
    address = brain.hear(KeeperInventory).addresses["control"]
    inode = os.stat(address).st_ino
    second = rig.launch()
    assert second.wait(DEADLINE_S) == exit_codes.ALREADY_RUNNING
    assert f"another mmsup (pid {rig.pid}) holds {rig.settings.state_dir}" in rig.stderr.read_text()
    assert os.stat(address).st_ino == inode
    rig.finish(brain)


def test_a_keeper_killed_can_be_followed_at_once(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    kid = brain.spawn("worker.1.1")
    stale = Path(paths.worker_socket(rig.settings.runtime_dir, 1, 1))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    rig.process.kill()
    rig.process.wait(DEADLINE_S)
    rig.process = rig.launch()
    second = rig.brain()
    assert second.hear(KeeperInventory).children == 0
    assert not stale.exists()
    wait_readable(kid.pidfd, "death")
    rig.finish(second)


def test_the_keeper_is_small_and_imports_the_standard_library_alone(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    rss_kib = int(Path(f"/proc/{rig.pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    assert rss_kib < 24 * 1024
    assert len(os.listdir(f"/proc/{rig.pid}/task")) == 1
    rig.finish(brain)
    code = "import json, sys, mmsup.supervisor.keeper.bootstrap; print(json.dumps(sorted(sys.modules)))"
    before = json.loads(
        subprocess.check_output([sys.executable, "-c", code.replace(", mmsup.supervisor.keeper.bootstrap", "")])
    )
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    foreign = {name.partition(".")[0] for name in set(loaded) - set(before)} - sys.stdlib_module_names
    assert foreign == {"mmsup"}


def test_starting_and_forgetting_leaves_no_descriptor_behind(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()

    def cycle(token: str) -> None:
        brain.spawn(token, "/bin/true").close()
        forget(brain, token)
        brain.say(spawn_of(token, "/nowhere"))
        brain.hear(SpawnFailed)

    cycle("worker.1.1")
    before = len(os.listdir(f"/proc/{rig.pid}/fd"))
    for number in range(20):
        cycle(f"worker.2.{number}")
    assert len(os.listdir(f"/proc/{rig.pid}/fd")) == before
    rig.finish(brain)


def test_a_listener_outlives_the_child_that_served_on_it(rig: KeeperRig) -> None:
    brain = rig.brain()
    host, _, port = brain.hear(KeeperInventory).addresses["http"].rpartition(":")
    code = """
import socket, sys
named = dict(each.rsplit("=", 1) for each in sys.argv[1:])
listener = socket.socket(fileno=int(named["listen:http"]))
listener.setblocking(True)
while True:
    listener.accept()[0].sendall(b"served")
"""
    first = brain.spawn("gateway.0.1", *python(code), listeners=("http",))
    with socket.create_connection((host, int(port)), DEADLINE_S) as client:
        assert client.recv(100) == b"served"
    brain.say(SignalChild(first.token, signal.SIGKILL))
    forget(brain, first.token)
    with socket.create_connection((host, int(port)), DEADLINE_S) as client:
        brain.spawn("gateway.0.2", *python(code), listeners=("http",))
        assert client.recv(100) == b"served"
    rig.finish(brain)


def test_tallies_are_the_same_for_every_gateway(rig: KeeperRig) -> None:
    brain = rig.greeted_brain()
    code = """
import sys
from mmsup.ipc.tally import Tally
named = dict(each.rsplit("=", 1) for each in sys.argv[1:])
tally = Tally(int(named["tally:0"]))
tally.row("m", "1").add("success")
print(tally.totals()[("m", "1")][0], flush=True)
"""
    for generation in (1, 2):
        kid = brain.spawn(f"gateway.0.{generation}", *python(code), tallies=True)
        assert kid.output() == b"%d\n" % generation
        forget(brain, kid.token)
    rig.finish(brain)


def test_systemd_hears_the_brain_and_the_keepers_own_beat(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(DEADLINE_S)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        with keeper_rig(tmp_path, environ=environ) as rig:
            brain = rig.greeted_brain()
            kid: Kid = brain.spawn("worker.1.1")
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{kid.pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in Path(f"/proc/{brain.pid}/environ").read_bytes()
            brain.say(NotifySystemd("READY=1"))
            heard = [systemd.recv(1000)]
            while b"READY=1" not in heard or heard.count(b"WATCHDOG=1") < 3:
                heard.append(systemd.recv(1000))
            rig.process.send_signal(signal.SIGTERM)
            while heard[-1] != b"STOPPING=1":
                heard.append(systemd.recv(1000))
            rig.finish(brain)


def test_a_port_in_use_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with keeper_rig(tmp_path, http_port=port) as rig:
            assert rig.process.wait(DEADLINE_S) == exit_codes.REFUSED
            assert f"http: cannot listen on 127.0.0.1:{port}: another program has it" in rig.stderr.read_text()
            assert os.listdir(rig.settings.runtime_dir) == ["lock"]


@pytest.mark.parametrize("argument", ["", "settings=99", "settings=x"])
def test_without_settings_the_keeper_says_how_it_is_started(argument: str) -> None:
    argv = [sys.executable, "-m", "mmsup.supervisor.keeper", *[argument] * bool(argument)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == exit_codes.USAGE
    assert "mmsup serve" in done.stderr
    assert "Traceback" not in done.stderr
