"""A small file that is there whole or not at all: whoever reads it finds the old contents or the new, after any death.

A new name, contents to the disk, then the name, then the folder. For what the brain must not lose.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from mmsup.ipc.failpoints import failpoint

UNFINISHED_SUFFIX: Final = ".new"
"""Ends the name of what a death may leave beside the file; the next writing of that file replaces it."""


def write(path: Path, data: bytes) -> None:
    """Replace the contents, durably; its owner's alone. OSError: the file is as it was."""
    fresh = path.with_name(path.name + UNFINISHED_SUFFIX)
    try:
        _make(path.parent)
        _fill(fresh, data)
        failpoint("brain.file_rename")
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    # From here on every reader finds the new contents, so this cannot fail any more: a folder that does not reach the
    # disk could lose them to a power cut, and to nothing else.
    with contextlib.suppress(OSError):
        failpoint("brain.file_renamed")
        _sync_folder(path.parent)
    failpoint("brain.file_written")


def remove(path: Path) -> None:
    """Take the file away, durably. OSError: it is still there, or was not."""
    path.unlink()
    failpoint("brain.file_removed")
    with contextlib.suppress(OSError):
        _sync_folder(path.parent)


def _make(folder: Path) -> None:
    """Private, and on the disk with all that it lies in."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        failpoint("brain.folder_made")
        _sync_folder(folder.parent)


def _fill(path: Path, data: bytes) -> None:
    failpoint("brain.file_open")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        failpoint("brain.file_write")
        file.write(data)
        file.flush()
        failpoint("brain.file_sync")
        os.fsync(fd)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
