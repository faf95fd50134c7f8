"""A small file that is there whole or not at all: whoever reads it finds the old contents or the new, after any death.

A new name, contents to the disk, then the name, then the folder. For what the brain must not lose.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mmsup.ipc.faultpoint import faultpoint


def write(path: Path, text: str) -> None:
    """Replace the contents, durably. OSError: the file is as it was."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    try:
        _fill(fresh, text)
        faultpoint("brain.file_rename")
        fresh.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    # From here on every reader finds the new contents, so this cannot fail any more: a folder that does not reach the
    # disk could lose them to a power cut, and to nothing else.
    with contextlib.suppress(OSError):
        faultpoint("brain.file_renamed")
        _sync_folder(path.parent)
    faultpoint("brain.file_written")


def remove(path: Path) -> None:
    """Take the file away, durably. OSError: it is still there, or was not."""
    path.unlink()
    faultpoint("brain.file_removed")
    with contextlib.suppress(OSError):
        _sync_folder(path.parent)


def _fill(path: Path, text: str) -> None:
    faultpoint("brain.file_open")
    with path.open("w", encoding="utf-8") as file:
        faultpoint("brain.file_write")
        file.write(text)
        file.flush()
        faultpoint("brain.file_sync")
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
