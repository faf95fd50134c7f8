from __future__ import annotations

import errno
import gc
import os
import socket
import stat
from pathlib import Path

import pytest

from mmsup.ipc import paths
from mmsup.supervisor.keeper.directories import AlreadyRunning, ServerDirectories, UnsafeDirectory


def test_both_directories_are_created_private_and_locked(tmp_path: Path) -> None:
    directories = ServerDirectories(str(tmp_path / "a" / "state"), str(tmp_path / "b" / "run"))
    for directory in (tmp_path / "a" / "state", tmp_path / "b" / "run"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert Path(paths.lock_file(str(directory))).read_text() == f"{os.getpid()}\n"
    directories.release()


@pytest.mark.parametrize(("state", "run"), [("one", "else"), ("else", "two"), ("two", "else"), ("link", "else")])
def test_a_directory_in_use_is_refused_with_the_pid_of_its_server(tmp_path: Path, state: str, run: str) -> None:
    first = ServerDirectories(str(tmp_path / "one"), str(tmp_path / "two"))
    (tmp_path / "link").symlink_to(tmp_path / "one")
    gc.collect()  # else descriptors of earlier tests might be closed in between
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        AlreadyRunning,
        match=rf"another mmsup \(pid {os.getpid()}\) holds {tmp_path}/(one|two): give another --state-dir",
    ):
        ServerDirectories(str(tmp_path / state), str(tmp_path / run))
    assert len(os.listdir("/proc/self/fd")) == before
    first.release()
    ServerDirectories(str(tmp_path / state), str(tmp_path / run)).release()


def test_one_directory_may_serve_for_both(tmp_path: Path) -> None:
    directories = ServerDirectories(str(tmp_path / "x"), str(tmp_path / "x"))
    with pytest.raises(AlreadyRunning):
        ServerDirectories(str(tmp_path / "y"), str(tmp_path / "x"))
    directories.release()


def test_the_lock_file_of_a_dead_server_does_not_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4121\n")
    ServerDirectories(str(tmp_path), str(tmp_path)).release()
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(UnsafeDirectory, match=rf"others may write to it \(mode {mode:04o}\)"):
        ServerDirectories(str(tmp_path / "open"), str(tmp_path / "run"))
    assert not (tmp_path / "open" / "lock").exists()


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, -1)
    with pytest.raises(UnsafeDirectory, match="belongs to uid 12345, not to uid 0"):
        ServerDirectories(str(tmp_path / "state"), str(tmp_path / "theirs"))


def test_a_file_in_place_of_a_directory_and_a_link_in_place_of_the_lock_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnsafeDirectory, match="cannot be made: "):
        ServerDirectories(str(tmp_path / "file" / "state"), str(tmp_path / "run"))
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "lock").symlink_to("/etc/passwd")
    with pytest.raises(UnsafeDirectory, match="lock: cannot be opened"):
        ServerDirectories(str(tmp_path / "state"), str(tmp_path / "run"))


def test_only_sockets_of_workers_are_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    directories = ServerDirectories(str(tmp_path / "state"), str(run))
    kept = ["control.sock", "w1.1.sock", "xw1.1", "w1", "wa.1"]
    for name in ["w1.1", "w12.345", *kept]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(run / name))
    (run / "w7.7").write_text("a file")
    (run / "w8.8").symlink_to(run / "w1.1.sock")
    directories.remove_worker_sockets()
    assert sorted(os.listdir(run)) == sorted([*kept, "lock", "w7.7", "w8.8"])
    directories.release()


@pytest.mark.parametrize(
    ("number", "is_transient"), [(errno.EMFILE, True), (errno.ENOSPC, False), (errno.EROFS, False)]
)
def test_a_shortage_that_may_pass_is_told_apart_from_a_directory_that_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, is_transient: bool
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnsafeDirectory) as refused:
        ServerDirectories(str(tmp_path / "state"), str(tmp_path / "run"))
    assert refused.value.is_transient is is_transient
