"""The build id of a running process: a digest of the source files of all mmsup modules that it has loaded."""

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
    """Of the modules that are loaded now, with their files as they are on disk now."""
    digest = hashlib.sha256()
    loaded = {Path(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    for path in sorted(each for each in loaded if each.is_relative_to(PACKAGE)):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_files() -> Iterator[Path]:
    """Every source file of the package. Its folders may be symbolic links."""
    for folder, _, names in os.walk(PACKAGE, followlinks=True):
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))
