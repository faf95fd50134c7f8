"""Files of the state directory that this version could not read: renamed to `NAME.kept-N`, and never touched again.

A file is kept for people, and for a newer version that can read it. Nothing of ours reads or removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
from itertools import count
from pathlib import Path
from typing import Final

_KEPT: Final = re.compile(r".+\.kept-\d+")


def keep_aside(path: Path) -> Path:
    """Rename a file to the first free name; the new path. OSError: it is where it was."""
    free = next(
        each for number in count(1) if not os.path.lexists(each := path.with_name(f"{path.name}.kept-{number}"))
    )
    path.rename(free)
    return free


def kept_aside(directory: Path) -> list[str]:
    """The names of all files that were kept aside in a directory."""
    with contextlib.suppress(OSError):
        return sorted(each for each in os.listdir(directory) if _KEPT.fullmatch(each))
    return []
