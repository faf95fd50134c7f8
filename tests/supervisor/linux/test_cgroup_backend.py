"""All versions: v1 in the real file system if this machine has it, v2 on recorded files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from keeper_rig import DEADLINE_S, is_alive, keeper_rig, wait_readable, wait_until
from mmsup.ipc.messages.keeper_control import ChildExited, SignalChild
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.cgroup import LOADING_WEIGHTS, SERVING_WEIGHTS, CgroupUsage, parse_field
from mmsup.supervisor.linux.cgroup_backend import (
    CgroupBackend,
    CgroupFacts,
    backend,
    choose,
    detect,
    kill_and_remove_all,
    set_up,
)

MIB = 1 << 20
TOP = f"mmsup_test_{os.getpid()}"
V1 = [cgroup_backend.ROOT / name / TOP for name in ("memory", "freezer", "pids", "cpu")]
HAS_V1 = os.access(cgroup_backend.ROOT / "memory" / "memory.limit_in_bytes", os.W_OK)
needs_v1 = pytest.mark.skipif(not HAS_V1, reason="no writable cgroup v1 memory hierarchy here")


# The choice.


@pytest.mark.parametrize(
    ("facts", "kind", "why"),
    [
        (CgroupFacts("/a/core", ("memory", "pids"), ("memory",), ""), "v2", "/a/core"),
        (CgroupFacts("/a/core", ("memory",), (), ""), "v2", "/a/core"),
        (CgroupFacts("/a/core", ("pids",), ("memory",), ""), "v1", "memory"),
        (CgroupFacts("/a/core", ("pids",), (), "", is_core=True), "v2", "no memory controller: RLIMIT_DATA"),
        (CgroupFacts("/", (), ("memory", "freezer"), "refused"), "v1", "memory, freezer"),
        (CgroupFacts("/", (), ("freezer", "pids"), "not delegated"), "none", "not delegated"),
        (CgroupFacts("", (), (), "not delegated"), "none", "RLIMIT_DATA"),
    ],
)
def test_the_version_follows_from_the_facts(facts: CgroupFacts, kind: str, why: str) -> None:
    choice = choose(facts)
    assert choice.kind == kind
    assert why in choice.reason


def test_a_folder_is_named_after_the_state_directory_alone(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    name = cgroup_backend.top_name(str(tmp_path))
    assert name == cgroup_backend.top_name(str(tmp_path / "link")) == cgroup_backend.top_name(f"{tmp_path}/.")
    assert name != cgroup_backend.top_name(str(tmp_path / "other"))
    assert name.startswith("mmsup_")


# v2, recorded.


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """A v2 group as systemd delegates it: writable, with our process in it."""
    root = tmp_path / "cgroup"
    folder = root / "system.slice" / "mmsup.service"
    folder.mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    recorded(folder)
    (tmp_path / "own").write_text("0::/system.slice/mmsup.service\n")
    return folder


def recorded(folder: Path, controllers: str = "cpu memory pids\n") -> None:
    """The files that the kernel creates in each group."""
    folder.mkdir(exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        (folder / name).write_text("")


def entered(delegated: Path, tmp_path: Path) -> CgroupBackend:
    """As after `set_up`: files of the kernel in all folders, controllers enabled, the keeper in the core."""
    server = delegated / TOP
    for folder in (server, server / "core"):
        recorded(folder)
    set_up(TOP, delegated.parents[1], tmp_path / "own")
    (server / "cgroup.subtree_control").write_text("memory pids\n")
    (tmp_path / "own").write_text(f"0::/system.slice/mmsup.service/{TOP}/core\n")
    return backend(TOP, delegated.parents[1], tmp_path / "own")


def test_v2_the_keeper_moves_into_the_core_before_it_enables_controllers(delegated: Path, tmp_path: Path) -> None:
    made = entered(delegated, tmp_path)
    assert (delegated / TOP / "core" / "cgroup.procs").read_text() == "0"
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory"
    assert made.description.startswith(f"cgroup v2: delegated, /system.slice/mmsup.service/{TOP}/core; starts compete")


def test_v2_a_worker_gets_a_group_with_its_limit(delegated: Path, tmp_path: Path) -> None:
    made = entered(delegated, tmp_path)
    group = made.create("w1.1", 64 * MIB)
    assert group.name == "w1.1"
    assert group.procs_files == (f"{delegated}/{TOP}/w1.1/cgroup.procs",)
    assert group.cap_bytes == 64 * MIB
    assert made.names() == ["w1.1"]
    assert made.group("w1.1").cap_bytes == 64 * MIB
    assert made.create("w2.1", None).cap_bytes is None


def test_v2_a_group_whose_limit_is_refused_leaves_no_folder(
    delegated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = entered(delegated, tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match="Invalid"):
        made.create("w1.1", 64 * MIB)
    assert made.names() == []


def test_v2_counters_are_read_in_the_kernels_format(delegated: Path, tmp_path: Path) -> None:
    group = entered(delegated, tmp_path).create("w1.1", 64 * MIB)
    folder = delegated / TOP / "w1.1"
    assert group.read() is None
    (folder / "memory.current").write_text("50331648\n")
    (folder / "memory.stat").write_text("anon 41943040\nfile 8388608\ninactive_file 4194304\nactive_file 4194304\n")
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert group.read() == CgroupUsage(50331648, 8388608, 50331648, 2)
    assert group.usage_bytes() == 50331648
    (folder / "memory.peak").write_text("67108864\n")
    assert group.read() == CgroupUsage(50331648, 8388608, 67108864, 2)


def test_v2_a_group_is_killed_by_the_kernel(delegated: Path, tmp_path: Path) -> None:
    made = entered(delegated, tmp_path)
    group = made.create("w1.1", None)
    folder = delegated / TOP / "w1.1"
    (folder / "cgroup.procs").write_text(f"{os.getppid()}\n")
    (folder / "cgroup.kill").write_text("")
    assert not group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"


@pytest.mark.parametrize(
    ("controllers", "own", "why"),
    [
        ("cpu memory pids\n", "0::/nowhere\n", "no memory controller"),
        ("cpu memory pids\n", "5:memory:/\n", "no memory controller"),
    ],
)
def test_v2_that_is_not_delegated_is_not_touched(
    delegated: Path, tmp_path: Path, controllers: str, own: str, why: str
) -> None:
    (delegated / "cgroup.controllers").write_text(controllers)
    (tmp_path / "own").write_text(own)
    made = set_up(TOP, delegated.parents[1], tmp_path / "own")
    assert why in made.description
    assert made.description.startswith("no cgroup")
    assert not (delegated / TOP).exists()


def test_v2_without_the_memory_controller_still_kills_a_worker_as_a_whole(delegated: Path, tmp_path: Path) -> None:
    server = delegated / TOP
    for folder in (delegated, server, server / "core"):
        recorded(folder, "pids\n")
    set_up(TOP, delegated.parents[1], tmp_path / "own")
    assert (server / "core" / "cgroup.procs").read_text() == "0"
    assert (delegated / "cgroup.subtree_control").read_text() == "+pids"
    (tmp_path / "own").write_text(f"0::/system.slice/mmsup.service/{TOP}/core\n")
    made = backend(TOP, delegated.parents[1], tmp_path / "own")
    assert made.description.startswith("cgroup v2: delegated")
    assert "RLIMIT_DATA" in made.description
    group = made.create("w1.1", 64 * MIB)
    assert group.procs_files == (f"{server}/w1.1/cgroup.procs",)
    assert (group.cap_bytes, group.read()) == (None, None)


def test_v2_without_the_memory_controller_is_unused_where_v1_has_one(delegated: Path, tmp_path: Path) -> None:
    recorded(delegated, "pids\n")
    v1 = delegated.parents[1] / "memory"
    v1.mkdir()
    (v1 / "cgroup.procs").write_text("")
    made = set_up(TOP, delegated.parents[1], tmp_path / "own")
    assert made.description.startswith("cgroup v1: own folders in memory; starts compete")
    assert not (delegated / TOP).exists()


def test_v2_with_foreign_processes_in_it_is_left_unchanged(delegated: Path, tmp_path: Path) -> None:
    (delegated / "cgroup.subtree_control").unlink()  # as EBUSY: it cannot be written
    (delegated / TOP).mkdir()
    (delegated / TOP / "core").mkdir()
    made = set_up(TOP, delegated.parents[1], tmp_path / "own")
    assert "holds processes that are not ours" in made.description
    assert not (delegated / TOP).exists()


def test_the_controller_uses_what_the_keeper_set_up_and_other_processes_do_not(delegated: Path, tmp_path: Path) -> None:
    entered(delegated, tmp_path)
    assert detect(TOP, delegated.parents[1], tmp_path / "own").controllers == ("memory", "pids")
    assert detect("mmsup_test_other", delegated.parents[1], tmp_path / "own").controllers == ()


# None.


def test_without_cgroups_nothing_is_created(tmp_path: Path) -> None:
    made = set_up(TOP, tmp_path, tmp_path / "own")
    group = made.create("w1.1", 64 * MIB)
    assert (group.name, group.procs_files, group.cap_bytes, group.read()) == ("", (), None, None)
    assert made.names() == []
    assert made.remove_all()
    assert "RLIMIT_DATA" in made.description


# v1, for real.


@pytest.fixture
def v1() -> Iterator[CgroupBackend]:
    made = set_up(TOP)
    try:
        yield made
    finally:
        assert cgroup_backend.tear_down(made)
        assert not any(top.exists() for top in V1)


def inside(procs_files: tuple[str, ...], code: str) -> subprocess.Popen[bytes]:
    """A process that joins the group like a child of the keeper."""
    join = "import sys\nfor path in sys.argv[1:]: open(path, 'w').write('0')\n"
    return subprocess.Popen([sys.executable, "-c", join + code, *procs_files], stdout=subprocess.PIPE)


@needs_v1
@pytest.mark.cgroup1
@pytest.mark.slow
class TestV1:
    def test_v1_is_chosen_and_described(self, v1: CgroupBackend) -> None:
        assert v1.description.startswith("cgroup v1: own folders in memory, freezer, pids, cpu; starts ")

    def test_the_limit_includes_swap(self, v1: CgroupBackend) -> None:
        group = v1.create("w1.1", 64 * MIB)
        assert group.cap_bytes == 64 * MIB
        with_swap = V1[0] / "w1.1" / "memory.memsw.limit_in_bytes"
        assert not with_swap.exists() or int(with_swap.read_text()) == 64 * MIB
        assert (V1[2] / "w1.1" / "pids.max").read_text() == f"{cgroup_backend.PIDS_LIMIT}\n"
        assert v1.create("w2.1", None).cap_bytes is None

    def test_a_loading_worker_has_half_the_cpu_share_of_a_serving_one(self, v1: CgroupBackend) -> None:
        group, shares = v1.create("w1.1", None), V1[3] / "w1.1" / "cpu.shares"
        assert shares.read_text() == "1024\n"
        group.set_cpu_weights(LOADING_WEIGHTS)
        assert shares.read_text() == "512\n"
        group.set_cpu_weights(SERVING_WEIGHTS)
        assert shares.read_text() == "1024\n"

    def test_an_oom_kill_is_counted_and_a_plain_kill_is_not(self, v1: CgroupBackend) -> None:
        killed = v1.create("w1.1", 64 * MIB)
        with inside(killed.procs_files, "print('in', flush=True)\nimport time; time.sleep(1000)") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
            process.kill()
        assert parse_field((V1[0] / "w1.1" / "memory.oom_control").read_text(), "oom_kill") == 0
        greedy = v1.create("w2.1", 64 * MIB)
        with inside(greedy.procs_files, f"bytearray({256 * MIB})") as process:
            assert process.wait(DEADLINE_S) == -signal.SIGKILL
        reading = greedy.read()
        assert reading is not None
        assert reading.oom_kills == 1
        assert 60 * MIB < reading.peak_bytes <= 64 * MIB

    def test_the_usage_rises_with_allocations(self, v1: CgroupBackend) -> None:
        group = v1.create("w1.1", None)
        code = f"kept = b'x' * {32 * MIB}\nprint('in', flush=True)\nimport time; time.sleep(1000)"
        with inside(group.procs_files, code) as process:
            assert process.stdout is not None
            process.stdout.readline()
            reading = group.read()
            assert reading is not None
            assert reading.usage_bytes >= 32 * MIB
            assert (group.usage_bytes() or 0) >= 32 * MIB
            assert reading.peak_bytes >= reading.usage_bytes - MIB
            process.kill()

    def test_all_processes_of_a_group_are_killed_in_any_session(self, v1: CgroupBackend) -> None:
        group = v1.create("w1.1", None)
        code = "import os, time\nprint(os.fork() or os.setsid() or os.getpid(), flush=True)\ntime.sleep(1000)"
        with inside(group.procs_files, code) as process:
            assert process.stdout is not None
            process.stdout.readline()
            wait_until(lambda: len(Path(group.procs_files[0]).read_text().split()) == 2, "both are in it")
            wait_until(group.kill, "no process left")
            assert process.wait(DEADLINE_S) == -signal.SIGKILL
        wait_until(group.remove, "removed")
        assert group.read() is None

    def test_a_group_in_use_is_not_removed(self, v1: CgroupBackend) -> None:
        group = v1.create("w1.1", None)
        with inside(group.procs_files, "print('in', flush=True)\nimport time; time.sleep(1000)") as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert not group.remove()
            assert v1.create("w1.1", None).name == "w1.1~2"
            process.kill()
        assert v1.names() == ["w1.1", "w1.1~2"]
        wait_until(lambda: kill_and_remove_all(v1), "swept")
        assert v1.names() == []

    def test_a_start_removes_left_over_groups_and_nothing_else(self, v1: CgroupBackend) -> None:
        other = set_up(f"{TOP}_other")
        bystander = other.create("w1.1", None)
        leftover = v1.create("w1.1", None)
        code = "print('in', flush=True)\nimport time; time.sleep(1000)"
        with inside(leftover.procs_files, code) as victim, inside(bystander.procs_files, code) as process:
            for each in (victim, process):
                assert each.stdout is not None
                each.stdout.readline()
            pidfd = os.pidfd_open(victim.pid)
            set_up(TOP)
            wait_readable(pidfd, "death")
            os.close(pidfd)
            assert is_alive(process.pid)
            process.kill()
        assert cgroup_backend.tear_down(other)

    def test_a_limit_that_the_kernel_refuses_is_an_error(self, v1: CgroupBackend) -> None:
        with pytest.raises(OSError, match="Invalid argument"):
            v1.create("w1.1", -5)

    def test_a_child_joins_and_its_whole_group_ends_with_it(self, tmp_path: Path) -> None:
        with keeper_rig(tmp_path) as rig:
            made = backend(cgroup_backend.top_name(rig.settings.state_dir))
            controller = rig.ready_controller()
            group = made.create("w1.1", None)
            script = "setsid sleep 1000 & wait"
            child = controller.spawn("worker.1.1", "/bin/sh", "-c", script, procs_files=group.procs_files)
            wait_until(lambda: len(Path(group.procs_files[0]).read_text().split()) == 2, "both are in it")
            (grandchild,) = set(map(int, Path(group.procs_files[0]).read_text().split())) - {child.pid}
            controller.send(SignalChild("worker.1.1", signal.SIGKILL))
            controller.receive(ChildExited)
            wait_until(lambda: not is_alive(grandchild), "the grandchild ended too")
            rig.finish(controller)
            assert made.names() == []
            assert not any(
                (cgroup_backend.ROOT / name / cgroup_backend.top_name(rig.settings.state_dir)).exists()
                for name in ("memory",)
            )

    def test_what_survives_a_killed_keeper_is_killed_by_the_next(self, tmp_path: Path) -> None:
        with keeper_rig(tmp_path) as rig:
            made = backend(cgroup_backend.top_name(rig.settings.state_dir))
            controller = rig.ready_controller()
            group = made.create("w1.1", None)
            child = controller.spawn(
                "worker.1.1", "/bin/sh", "-c", "setsid sleep 1000 & wait", procs_files=group.procs_files
            )
            wait_until(lambda: len(Path(group.procs_files[0]).read_text().split()) == 2, "both are in it")
            rig.process.kill()
            wait_readable(child.pidfd, "death")
            rig.process.wait(DEADLINE_S)
            rig.process = rig.launch()
            second = rig.ready_controller()
            assert made.names() == []
            rig.finish(second)
