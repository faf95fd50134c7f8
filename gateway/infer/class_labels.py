"""Names of a model's classes, read from the file that its configuration names as `label_filename`: one per line.

The file is in the model's directory, beside its versions. A file that is missing, too large or not plain text gives no
names.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from mmsup.ipc.specs import LABELS_LIMIT_BYTES, ModelSpec


def read_labels(spec: ModelSpec) -> dict[str, list[str]]:
    """Names by output. The first call for each file reads it: call it off the event loop."""
    return {
        str(output.get("name")): _read_file(spec.directory, str(output["label_filename"]))
        for output in spec.config.get("output", ())
        if output.get("label_filename")
    }


@functools.lru_cache(maxsize=256)
def _read_file(directory: str, file: str) -> list[str]:
    if os.path.basename(file) != file:
        return []
    path = Path(directory).parent / file
    try:
        # A link may lead out of the repository; opening a pipe would block for ever.
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LABELS_LIMIT_BYTES:
            return []
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
