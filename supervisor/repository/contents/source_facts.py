"""What a look at the first lines of a Python model's file tells of it. Nothing is run.

The library of ENGINE_SETS that it imports decides only of which process the first worker of the model is forked; from
then on what was really imported does. The interface of its class decides which engine runs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.python_models import TRITON_CLASS, TRITON_COMPLETION
from mmsup.ipc.specs import TRITON_PYTHON

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


_TRITON_CLASS: Final = re.compile(
    rf"^(?:class[ \t]+{TRITON_CLASS}\b|{TRITON_CLASS}[ \t]*=|(?:from|import)\b[^\n]*\b{TRITON_CLASS}\b)".encode(),
    re.MULTILINE,
)
_COMPLETION: Final = re.compile(rf"\b{TRITON_COMPLETION}\b".encode())


@dataclass(frozen=True, slots=True)
class SourceFacts:
    imports: str = ""
    """The library of ENGINE_SETS; empty if none is seen."""
    interface: str = ""
    """As in ModelSpec."""
    may_declare_tensors: bool = False
    """Its class may name its inputs and outputs itself, when it is loaded."""


def source_facts(path: str) -> SourceFacts:
    """None of them is seen if the file cannot be read."""
    with contextlib.suppress(OSError), open(path, "rb", opener=_open_at_once) as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return _facts(file.read(LOOKED_AT_BYTES))
    return SourceFacts()


def _facts(text: bytes) -> SourceFacts:
    imports = next((library for library, line in _LINES.items() if line.search(text)), "")
    if not _TRITON_CLASS.search(text):
        return SourceFacts(imports)
    return SourceFacts(imports, TRITON_PYTHON, _COMPLETION.search(text) is not None)


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end, should it be a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
