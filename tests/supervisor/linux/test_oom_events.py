"""Notifications of the kernel's out-of-memory killer."""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.cgroup_backend import CgroupBackend
from mmsup.supervisor.linux.oom_events import OomEvents

pytestmark = [pytest.mark.slow, pytest.mark.root]
DEADLINE_S = 20.0
UNIFIED = Path("/sys/fs/cgroup/unified")
EATER = "held = bytearray(200 << 20); held[::4096] = b'x' * len(held[::4096])"


def is_heard(watch: OomEvents, wait_s: float) -> bool:
    return bool(select.select([watch.fileno()], [], [], wait_s)[0])


@pytest.fixture
def v1() -> Iterator[CgroupBackend]:
    if not os.access(cgroup_backend.ROOT / "memory" / "memory.limit_in_bytes", os.W_OK):
        pytest.skip("no writable cgroup v1 memory hierarchy here")
    made = cgroup_backend.backend(f"mmsup_test_oom_{os.getpid()}")
    yield made
    assert cgroup_backend.tear_down(made)


@pytest.mark.cgroup1
def test_v1_an_oom_kill_is_notified_and_a_plain_kill_is_not(v1: CgroupBackend) -> None:
    group = v1.create("w1.1", 64 << 20)
    assert group.folder is not None
    watch = OomEvents(group.folder)
    joined = f"import os\nfor file in {group.procs_files!r}:\n    open(file, 'w').write('0')\n"
    plain = subprocess.Popen([sys.executable, "-c", joined + "import time; print(flush=True); time.sleep(60)"],
                             stdout=subprocess.PIPE)  # fmt: skip
    assert plain.stdout is not None
    plain.stdout.read(1)
    plain.kill()
    plain.wait()
    plain.stdout.close()
    assert not is_heard(watch, 0)
    eater = subprocess.Popen([sys.executable, "-c", joined + EATER])
    assert is_heard(watch, DEADLINE_S)
    watch.clear()
    assert eater.wait() != 0
    reading = group.read()
    assert reading is not None
    assert reading.oom_kills >= 1
    watch.close()
    assert group.remove()


def test_v2_a_change_of_memory_events_is_notified_once(tmp_path: Path) -> None:
    if not os.access(UNIFIED / "cgroup.procs", os.W_OK):
        pytest.skip("no writable cgroup v2 tree here")
    folder = UNIFIED / f"mmsup_test_oom_{os.getpid()}"
    folder.mkdir()
    try:
        (tmp_path / "memory.events").symlink_to(folder / "cgroup.events")  # notified in the same way
        watch = OomEvents(tmp_path)
        assert not is_heard(watch, 0)
        sleeper = subprocess.Popen(["sleep", "60"])
        (folder / "cgroup.procs").write_text(str(sleeper.pid))
        assert is_heard(watch, DEADLINE_S)
        watch.clear()
        assert not is_heard(watch, 0)
        sleeper.kill()
        sleeper.wait()
        assert is_heard(watch, DEADLINE_S)
        watch.close()
    finally:
        while "populated 1" in (folder / "cgroup.events").read_text():
            pass
        folder.rmdir()


@pytest.mark.parametrize(
    ("file", "owner", "name"), [("memory.oom_control", os, "eventfd"), ("memory.events", select, "epoll")]
)
def test_a_lack_of_descriptors_leaks_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, owner: object, name: str
) -> None:
    (tmp_path / file).touch()
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = set(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(OSError, match="Too many"):
        OomEvents(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_missing_folder_is_an_error_and_leaks_nothing(tmp_path: Path) -> None:
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"."):
        OomEvents(tmp_path)
    (tmp_path / "memory.oom_control").write_text("")
    with pytest.raises(OSError, match="cannot be watched"):
        OomEvents(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before
