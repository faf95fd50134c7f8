"""Finds and removes files that servers leave in /dev/shm, and in /tmp in spite of TMPDIR."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_FOLDER = Path("/dev/shm")  # noqa: S108 - it is what this is about
_TMP = Path("/tmp")  # noqa: S108 - the same
_SEMAPHORE = "sem."
"""Of glibc, which maps one under the name that it had before it got this one: whether it is used cannot be seen."""


def names() -> frozenset[str]:
    """Names in /dev/shm."""
    return frozenset(os.listdir(_FOLDER)) if _FOLDER.is_dir() else frozenset()


def remove(before: frozenset[str]) -> list[str]:
    """Remove new names that no process has open or mapped, but no semaphores; returns them."""
    fresh = {each for each in names() - before if not each.startswith(_SEMAPHORE)}
    if not fresh:
        return []
    used = "\n".join(_used())
    left = [name for name in sorted(fresh) if f"{_FOLDER}/{name}" not in used and _is_ours(_FOLDER / name)]
    for name in left:
        (_FOLDER / name).unlink(missing_ok=True)
    return left


def litter(patterns: Iterable[str]) -> frozenset[Path]:
    """Folders in /tmp that match the server's patterns."""
    return frozenset(path for pattern in patterns for path in _TMP.glob(pattern))


def remove_litter(patterns: Iterable[str], before: frozenset[Path]) -> None:
    """Remove the new ones of these folders."""
    for path in litter(patterns) - before:
        shutil.rmtree(path, ignore_errors=True)


def _is_ours(file: Path) -> bool:
    try:
        return file.is_file() and file.stat().st_uid == os.getuid()
    except OSError:
        return False


def _used() -> list[str]:
    """Mappings and descriptors of every process, as text."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines.append((process / "maps").read_text())
            lines += [os.readlink(each) for each in (process / "fd").iterdir()]
        except OSError:
            continue
    return lines
