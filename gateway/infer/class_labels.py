"""Names of a model's classes, from the file that its configuration calls `label_filename`: one a line.

The file lies in the model's folder, beside its versions; what is not there, too large or not plain text has no names.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Final

from mmsup.ipc.specs import ModelSpec

SIZE_LIMIT_BYTES: Final = 4 << 20


def read_labels(spec: ModelSpec) -> dict[str, list[str]]:
    """Names by output. Reads a file at the first call for each: run it where that may wait."""
    found: dict[str, list[str]] = {}
    for output in spec.config.get("output", ()):
        file = output.get("label_filename")
        if file:
            found[str(output.get("name"))] = _read_file(spec.directory, str(file))
    return found


@functools.lru_cache(maxsize=256)
def _read_file(directory: str, file: str) -> list[str]:
    if os.path.basename(file) != file:
        return []
    path = Path(directory).parent / file
    try:
        if path.is_symlink() or path.stat().st_size > SIZE_LIMIT_BYTES:
            return []
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
