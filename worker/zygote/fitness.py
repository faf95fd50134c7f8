"""Whether a worker may be forked of this process now.

A fork copies one thread. Locks that another one holds stay locked in the child, for ever: so there must be one thread
alone. A CUDA context does not survive a fork either. And a worker must run the code that an exec would run now, so that
the files of what is imported must be those that were imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LIBRARIES: Final = ("numpy", "ml_dtypes", "msgpack", "onnxruntime", "torch")
"""Of these the first file tells whether another version was installed."""
_GPU_FILES: Final = "/dev/nvidia"
_PACKAGE: Final = "mmsup."
_Stamp = tuple[int, int, int]


def unfitness() -> str:
    """Why no worker may be forked; empty if one may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"it has {threads} threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "it has initialized CUDA"
    if any(each.startswith(_GPU_FILES) for each in _open_files()):
        return "it has opened a GPU"
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        return "it has loaded the CUDA driver"
    return ""


def _open_files() -> Iterable[str]:
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            yield os.readlink(f"/proc/self/fd/{fd}")


class LoadedCode:
    """The files of what this process has imported: all of mmsup, and the first file of each library."""

    def __init__(self) -> None:
        self._stamps = {path: _stamp(path) for path in _imported_files()}

    def has_changed(self) -> bool:
        return any(_stamp(path) != stamp for path, stamp in self._stamps.items())


def _imported_files() -> Iterable[str]:
    for name, module in list(sys.modules.items()):
        if (name.startswith(_PACKAGE) or name in LIBRARIES) and (path := getattr(module, "__file__", None)):
            yield path


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
