"""Writes a small file atomically and durably: after any crash a reader finds the old contents or the new.

The contents go to a file of another name and to the disk, which is then renamed; then the directory goes to the disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from mmsup.ipc.failpoints import failpoint

UNFINISHED_SUFFIX: Final = ".new"
"""Ends the name of the file that a crash may leave behind; the next write of the same file replaces it."""


def write(path: Path, data: bytes) -> None:
    """Replace the contents; only the owner may read them. OSError: the file is as it was."""
    unfinished = path.with_name(path.name + UNFINISHED_SUFFIX)
    try:
        _make_directory(path.parent)
        _write_contents(unfinished, data)
        failpoint("brain.file_rename")
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    # Every reader finds the new contents by now, so this is not allowed to fail: a directory that does not reach the
    # disk can lose them to a power cut, and to nothing else.
    with contextlib.suppress(OSError):
        failpoint("brain.file_renamed")
        _sync_directory(path.parent)
    failpoint("brain.file_written")


def remove(path: Path) -> None:
    """Remove the file durably. OSError: it is still there, or was not."""
    path.unlink()
    failpoint("brain.file_removed")
    with contextlib.suppress(OSError):
        _sync_directory(path.parent)


def _make_directory(directory: Path) -> None:
    """Make the directory and its parents, private and on the disk."""
    if not directory.is_dir():
        _make_directory(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
        failpoint("brain.folder_made")
        _sync_directory(directory.parent)


def _write_contents(path: Path, data: bytes) -> None:
    failpoint("brain.file_open")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        failpoint("brain.file_write")
        file.write(data)
        file.flush()
        failpoint("brain.file_sync")
        os.fsync(fd)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
