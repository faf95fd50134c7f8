"""Which library of ENGINE_SETS a Python class imports, by a look at the first lines of its file. Nothing is run.

It decides only of which process the first worker of the model is forked; from then on what was really imported does.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import Final

LOOKED_AT_BYTES: Final = 64 * 1024
_BY_LIBRARY: Final = {
    "torch": "torch|torchvision|torchaudio|transformers|diffusers|timm|sentence_transformers|lightning",
    "onnxruntime": "onnxruntime",
}
"""torch first: a class that imports both is forked of it."""
_LINES: Final = {
    library: re.compile(rf"^(?:import|from)[ \t]+(?:{names})\b".encode(), re.MULTILINE)
    for library, names in _BY_LIBRARY.items()
}
"""Imports at the top of a module; one in a function may never be made."""


def imported_library(path: str) -> str:
    """Empty if none is seen, or the file cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb", opener=_open_at_once) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            text = file.read(LOOKED_AT_BYTES)
            return next((library for library, line in _LINES.items() if line.search(text)), "")
    return ""


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end, should it be a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
