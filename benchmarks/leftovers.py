"""What servers leave in /dev/shm when they end."""

from __future__ import annotations

import os
from pathlib import Path

_FOLDER = Path("/dev/shm")  # noqa: S108 - it is what this is about


def names() -> frozenset[str]:
    """What is there now."""
    return frozenset(os.listdir(_FOLDER)) if _FOLDER.is_dir() else frozenset()


def remove(before: frozenset[str]) -> list[str]:
    """Remove what has come since and no process has open or mapped; their names."""
    fresh = names() - before
    if not fresh:
        return []
    used = "\n".join(_used())
    left = [name for name in sorted(fresh) if f"{_FOLDER}/{name}" not in used and _is_ours(_FOLDER / name)]
    for name in left:
        (_FOLDER / name).unlink(missing_ok=True)
    return left


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
