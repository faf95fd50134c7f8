"""A real keeper and a real zygote: what a forked worker is like, and what follows when a zygote fails."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from keeper_rig import (
    DEADLINE_S,
    ChildHandle,
    KeeperRig,
    RelayedController,
    forget,
    is_alive,
    keeper_rig,
    spawn_of,
    wait_readable,
    wait_until,
)
from mmsup.ipc import exit_codes
from mmsup.ipc.environment import WORKER_MARK
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.ipc.messages.keeper_control import (
    ChildDescriptors,
    ChildExited,
    NotForked,
    SignalChild,
    Spawn,
    SpawnFailed,
)
from mmsup.ipc.messages.zygote_control import FROM_ZYGOTE, ConfigureZygote, ZygoteReady
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.worker_marks import mark_number, read_mark
from mmsup.supervisor.processes.launch_spec import FORK_LIMIT_S, IMPORT_LIMIT_S, LaunchEnvironment, zygote_spawn

pytestmark = pytest.mark.slow
ZYGOTE = "zygote.1.1"
ON_SIGNAL = """
import os, signal, sys, threading, time, types
part = types.ModuleType("mmsup.part")
part.__file__ = os.path.join(os.path.dirname(__file__), "part.py")
sys.modules["mmsup.part"] = part
def hang(*_):
    open(os.path.join(os.path.dirname(__file__), "hung"), "x").close()
    time.sleep(1000)
def start_thread(*_):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
signal.signal(signal.SIGUSR1, hang)
signal.signal(signal.SIGUSR2, start_thread)
"""
"""A sitecustomize, with which signals do to a zygote what a fault of its own would do."""


@dataclass(frozen=True)
class Zygote:
    child: ChildHandle
    controller: RelayedController

    @property
    def pid(self) -> int:
        return self.child.pid

    def fork(self, spawn: Spawn) -> None:
        self.controller.send(spawn)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[KeeperRig]:
    with keeper_rig(tmp_path) as made:
        yield made


def start_zygote(
    controller: RelayedController, folder: Path, procs_files: tuple[str, ...] = (), *, imports: bool = True
) -> Zygote:
    environment = LaunchEnvironment({}, str(folder), str(folder), 2)
    spawn = zygote_spawn(sys.executable, "numpy", (1, 1), environment, procs_files, "")
    (folder / "sitecustomize.py").write_text(ON_SIGNAL)
    (folder / "part.py").write_text("x = 1\n")
    controller.send(with_env(spawn, PYTHONPATH=str(folder)))
    return import_all(Zygote(controller.child(), controller)) if imports else Zygote(controller.child(), controller)


def import_all(zygote: Zygote) -> Zygote:
    channel = ControlChannel.from_fd(os.dup(zygote.child.control))
    channel.send(encode(ConfigureZygote(WIRE_VERSION, "numpy")))
    wait_readable(channel.fileno(), "readiness of the zygote")
    received = channel.receive()
    assert received is not None
    ready = decode(received[0], FROM_ZYGOTE)
    assert isinstance(ready, ZygoteReady)
    channel.close()
    return zygote


def with_env(spawn: Spawn, **more: str) -> Spawn:
    return replace(spawn, env={**spawn.env, **more})


def worker(token: str, folder: Path, *, zygote: str, **fields: Any) -> Spawn:  # fields of Spawn
    """A worker that waits for its configuration for ever."""
    env = {"PATH": os.defpath, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    env |= {"HOME": str(folder), "TZ": "Asia/Tokyo", WORKER_MARK: f"server/{token}", "PYTHONPATH": str(folder)}
    plain: dict[str, Any] = {
        "env": env,
        "cwd": str(folder),
        "oom_score_adj": 300,
        "zygote": zygote,
        "fork_limit_s": FORK_LIMIT_S,
    }
    return spawn_of(token, sys.executable, "-m", "mmsup.worker", "model/1#7", **(plain | fields))


def descriptor_kinds(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            found[target.partition(":")[0] if target[0] != "/" else target.partition(" ")[0]] += 1
    return found


def status_of(pid: int, *names: str) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: value.strip() for name, _, value in lines if name in names}


def command_of(pid: int) -> list[str]:
    return [each.partition("=")[0] for each in Path(f"/proc/{pid}/cmdline").read_text().split("\0") if each]


def settled_worker(child: ChildHandle) -> None:
    """It waits for its configuration: in poll, with nothing else to do."""
    wait_until(lambda: "poll" in Path(f"/proc/{child.pid}/wchan").read_text() or _sleeps(child.pid), "it waits")


def _sleeps(pid: int) -> bool:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    caught = status_of(pid, "SigCgt")["SigCgt"]
    return fields[0] == "S" and int(caught, 16) >> (signal.SIGQUIT - 1) & 1 == 1


def outside_facts(child: ChildHandle, keeper: int) -> dict[str, object]:
    pid = child.pid
    settled_worker(child)
    return {
        "parent": status_of(pid, "PPid")["PPid"] == str(keeper),
        "session": os.getsid(pid) == pid,
        "status": status_of(pid, "Name", "Umask", "SigBlk", "SigIgn", "SigCgt", "NSsid", "Threads") | {"NSsid": ""},
        "command": command_of(pid),
        "mark": [
            each.partition("/")[0]
            for each in Path(f"/proc/{pid}/environ").read_text().split("\0")
            if each.startswith(WORKER_MARK)
        ],
        "descriptors": descriptor_kinds(pid),
        "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
        "cwd": os.readlink(f"/proc/{pid}/cwd"),
        "limits": re.sub(r"(realtime timeout +)[0-9]{16,}", r"\1MARK", Path(f"/proc/{pid}/limits").read_text()),
        "stdin": os.readlink(f"/proc/{pid}/fd/0"),
        "exe": os.readlink(f"/proc/{pid}/exe"),
    }


def test_a_forked_worker_is_as_one_after_an_exec(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    (tmp_path / "sitecustomize.py").unlink()
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    forked = controller.child()
    zygote.fork(worker("worker.8.1", tmp_path, zygote=""))
    executed = controller.child()
    assert outside_facts(forked, rig.pid) == outside_facts(executed, rig.pid)
    assert read_mark(forked.pid) == mark_number("server/worker.7.1")
    assert (forked.message.token, forked.message.note) == ("worker.7.1", "note of worker.7.1")
    assert status_of(zygote.pid, "Threads") == {"Threads": "1"}


def test_a_zygote_holds_nothing_of_its_workers(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    before = descriptor_kinds(zygote.pid)
    assert before == {"/dev/null": 1, "pipe": 4, "socket": 2}
    of_keeper = descriptor_kinds(rig.pid)
    for number in range(5):
        zygote.fork(worker(f"worker.{number}.1", tmp_path, zygote=ZYGOTE))
        child = controller.child()
        controller.send(SignalChild(child.token, signal.SIGKILL))
        forget(controller, child.token)
    assert descriptor_kinds(zygote.pid) == before
    wait_until(lambda: descriptor_kinds(rig.pid) == of_keeper, "the keeper holds nothing of workers that are forgotten")


def test_the_keeper_reaps_what_a_zygote_has_forked_and_knows_its_end(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    child = controller.child()
    settled_worker(child)
    os.kill(child.pid, signal.SIGABRT)
    wait_readable(child.pidfd, "exit")
    ended = forget(controller, "worker.7.1")
    assert (ended.pid, ended.signal) == (child.pid, signal.SIGABRT)
    assert b"Fatal Python error: Aborted" in os.read(child.crash, 65536)
    assert not is_alive(child.pid)


@pytest.mark.fault("F55")
def test_workers_live_on_when_their_zygote_is_killed(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    child = controller.child()
    os.kill(zygote.pid, signal.SIGKILL)
    forget(controller, ZYGOTE)
    assert is_alive(child.pid)
    zygote.fork(worker("worker.8.1", tmp_path, zygote=ZYGOTE))
    assert controller.receive(NotForked) == NotForked("worker.8.1", "it has exited")
    assert is_alive(controller.child().pid)
    assert is_alive(child.pid)


@pytest.mark.fault("F56")
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR1], ids=["stopped", "hung"])
def test_a_zygote_that_does_not_answer_is_killed_and_its_worker_started_by_exec(
    rig: KeeperRig, tmp_path: Path, number: signal.Signals
) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    os.kill(zygote.pid, number)
    wait_until(
        lambda: status_of(zygote.pid, "State")["State"].startswith("T") or (tmp_path / "hung").exists(), "a stop"
    )
    for each in ("worker.7.1", "worker.8.1"):
        zygote.fork(worker(each, tmp_path, zygote=ZYGOTE))
    messages = [controller.receive(object) for _ in range(5)]
    refused = [each for each in messages if isinstance(each, NotForked)]
    text = f"it did not answer within {FORK_LIMIT_S:g} s"
    assert refused == [NotForked("worker.7.1", text), NotForked("worker.8.1", text)]
    children = [each.token for each in messages if isinstance(each, ChildDescriptors)]
    (ended,) = [each for each in messages if isinstance(each, ChildExited)]
    assert sorted(children) == ["worker.7.1", "worker.8.1"]
    assert (ended.token, ended.signal) == (ZYGOTE, signal.SIGKILL)
    children_file = Path(f"/proc/{rig.pid}/task/{rig.pid}/children")
    wait_until(
        lambda: len(children_file.read_text().split()) == 3, "the controller and two workers are all that is left"
    )


@pytest.mark.fault("F57")
def test_a_zygote_with_a_second_thread_refuses_and_exits(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    os.kill(zygote.pid, signal.SIGUSR2)
    wait_until(lambda: status_of(zygote.pid, "Threads") == {"Threads": "2"}, "a second thread")
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    assert controller.receive(NotForked) == NotForked("worker.7.1", "it has 2 threads")
    messages = [controller.receive(object) for _ in range(2)]
    (ended,) = [each for each in messages if isinstance(each, ChildExited)]
    assert (ended.token, ended.status) == (ZYGOTE, exit_codes.ZYGOTE_UNFIT)
    assert b"it has 2 threads" in zygote.child.output()


@pytest.mark.fault("F57")
def test_a_zygote_whose_code_has_changed_refuses_and_exits(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    (tmp_path / "part.py").write_text("y = 2\n")
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    assert controller.receive(NotForked) == NotForked("worker.7.1", "its code has changed since")
    messages = [controller.receive(object) for _ in range(2)]
    (ended,) = [each for each in messages if isinstance(each, ChildExited)]
    assert (ended.token, ended.status) == (ZYGOTE, exit_codes.ZYGOTE_OUTDATED)


def test_a_fork_that_cannot_be_set_up_is_left_to_exec_which_tells_why(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE, cwd="/nowhere"))
    assert "/nowhere" in controller.receive(NotForked).text
    assert "/nowhere" in controller.receive(SpawnFailed).text
    zygote.fork(worker("worker.7.2", tmp_path, zygote=ZYGOTE))
    assert is_alive(controller.child().pid), "the zygote is as good as before"


def test_everything_ends_with_the_keeper(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    child = controller.child()
    rig.process.kill()
    rig.process.wait(DEADLINE_S)
    for pidfd in (zygote.child.pidfd, child.pidfd):
        wait_readable(pidfd, "end")


def test_a_token_is_not_given_twice_while_it_is_being_forked(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path)
    os.kill(zygote.pid, signal.SIGSTOP)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE))
    zygote.fork(worker("worker.7.1", tmp_path, zygote=""))
    assert controller.receive(SpawnFailed) == SpawnFailed("worker.7.1", "there is a worker.7.1 already")
    os.kill(zygote.pid, signal.SIGCONT)
    assert controller.child().token == "worker.7.1"


def test_a_worker_that_is_requested_before_its_zygote_has_imported_everything_is_forked_then(
    rig: KeeperRig, tmp_path: Path
) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path, imports=False)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE, fork_limit_s=IMPORT_LIMIT_S))
    import_all(zygote)
    forked = controller.child()
    assert status_of(forked.pid, "PPid") == {"PPid": str(rig.pid)}
    assert forked.token == "worker.7.1"


def test_a_worker_that_is_stopped_before_its_fork_is_not_started(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    zygote = start_zygote(controller, tmp_path, imports=False)
    of_keeper = descriptor_kinds(rig.pid)
    for token in ("worker.7.1", "worker.8.1"):
        zygote.fork(worker(token, tmp_path, zygote=ZYGOTE, fork_limit_s=IMPORT_LIMIT_S))
    controller.send(SignalChild("worker.7.1", signal.SIGKILL, whole_session=True))
    assert controller.receive(SpawnFailed) == SpawnFailed("worker.7.1", "it was stopped before it was forked")
    import_all(zygote)
    assert controller.child().token == "worker.8.1"
    controller.send(SignalChild("worker.8.1", signal.SIGKILL))
    forget(controller, "worker.8.1")
    wait_until(lambda: descriptor_kinds(rig.pid) == of_keeper, "the keeper holds nothing of either")
    children_file = Path(f"/proc/{rig.pid}/task/{rig.pid}/children")
    wait_until(
        lambda: len(children_file.read_text().split()) == 2, "the controller and the zygote are all that is left"
    )


def test_what_a_fork_copies_is_charged_to_the_group_of_its_worker(rig: KeeperRig, tmp_path: Path) -> None:
    controller = rig.ready_controller()
    backend = cgroup_backend.backend(cgroup_backend.top_name(rig.settings.state_dir))
    groups = [backend.create(name, None) for name in ("z1.1", "w7.1")]
    if not groups[0].procs_files:
        pytest.skip("no control groups here")
    zygote = start_zygote(controller, tmp_path, groups[0].procs_files)
    zygote.fork(worker("worker.7.1", tmp_path, zygote=ZYGOTE, procs_files=groups[1].procs_files))
    child = controller.child()
    settled_worker(child)
    assert groups[0].pids() == {zygote.pid}
    assert groups[1].pids() == {child.pid}
    assert all(group.holds(pid) for group, pid in zip(groups, (zygote.pid, child.pid), strict=True))
    usage = groups[1].usage_bytes()
    assert usage is not None
    assert 0 < usage < 12 << 20
