"""What makes a keeper refuse to start, before its loop; the loop is tested in test_keeper.py."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from keeper_rig import DEADLINE_S, keeper_rig
from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import KeeperInventory
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper.__main__ import SETTINGS_LIMIT_BYTES

pytestmark = pytest.mark.slow


def keeper(text: str) -> subprocess.CompletedProcess[str]:
    fd = os.memfd_create("settings", 0)
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    argv = [sys.executable, "-m", "mmsup.supervisor.keeper", f"settings={fd}"]
    try:
        return subprocess.run(
            argv, pass_fds=[fd], capture_output=True, text=True, check=False, timeout=DEADLINE_S, cwd="/"
        )
    finally:
        os.close(fd)


def settings_of(folder: Path) -> Settings:
    return Settings(
        repositories=(),
        runtime_dir=str(folder / "run"),
        state_dir=str(folder / "state"),
        http_port=0,
        grpc_port=-1,
        metrics_port=-1,
    )


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense"])
def test_invalid_settings_are_refused(text: str) -> None:
    done = keeper(text)
    assert done.returncode == exit_codes.USAGE
    assert done.stderr.startswith("mmsup: no settings: ")
    assert "Traceback" not in done.stderr


def test_settings_too_large_for_a_message_are_refused_before_anything_is_created(tmp_path: Path) -> None:
    settings = replace(settings_of(tmp_path), models={"m": {"env": {"X": "y" * SETTINGS_LIMIT_BYTES}}})
    done = keeper(settings.to_json())
    assert done.returncode == exit_codes.USAGE
    assert "shorten the server's configuration file" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_directory_that_others_may_write_to_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    done = keeper(settings_of(tmp_path).to_json())
    assert done.returncode == exit_codes.USAGE
    assert done.stderr == (
        f"mmsup: {tmp_path}/state: others may write to it (mode 0777): make it 0700, or name a directory below it, as "
        f"{tmp_path}/state/mmsup, which is then made for this user alone\n"
    )
    assert not (tmp_path / "run").exists()


def open_files(pid: int) -> set[str]:
    """Open files of a process, which may close some while they are listed."""
    found: set[str] = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found


def test_open_files_of_the_starter_are_not_inherited_and_closed_standard_descriptors_are_filled(tmp_path: Path) -> None:
    stray = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(stray, True)  # noqa: FBT003 - the standard library's own signature
    try:
        with keeper_rig(tmp_path, close=0, keep=[stray]) as rig:
            controller = rig.controller()
            controller.receive(KeeperInventory)
            child = controller.spawn("worker.1.1")
            assert os.readlink(f"/proc/{rig.pid}/fd/0") == "/dev/null"
            for pid in (controller.pid, child.pid):
                assert "/etc/hostname" not in open_files(pid)
            rig.finish(controller)
    finally:
        os.close(stray)
