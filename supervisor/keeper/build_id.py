"""What code a process of ours runs: the digest of the files that its modules of mmsup came from."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import mmsup

PACKAGE: Final = Path(next(iter(mmsup.__path__)))


def loaded_build_id() -> str:
    """Of the files of all modules that are loaded now, as they lie on disk now."""
    digest = hashlib.sha256()
    for path in sorted(_loaded_files()):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_files() -> Iterator[Path]:
    """Every source file of the package; its folders may be links."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _loaded_files() -> set[Path]:
    found = {Path(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    return {path for path in found if path.is_relative_to(PACKAGE)}
