"""Gives a forked worker the command line and the mark of its own that `ps` and /proc show.

An exec writes both into the new process's memory; a fork leaves those of the zygote there. So the zygote is started
with room in both: an argument of blanks, and a variable WORKER_MARK that is as long as any mark. The mark matters: by
it the keeper finds what a model has started and what has left its session (supervisor/linux/worker_marks.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mmsup.ipc.environment import WORKER_MARK

_ARGUMENTS_START: Final = 48 - 3
"""The field arg_start of /proc/self/stat, counted from 0 after the name in brackets; then follow arg_end, env_start
and env_end."""


class ProcessTitles:
    """The places of both in this process's memory, which a fork shares."""

    def __init__(self) -> None:
        """OSError if the kernel does not tell, or there is no room."""
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end, env_start, env_end = map(int, fields[_ARGUMENTS_START : _ARGUMENTS_START + 4])
        if not 0 < start < end or not 0 < env_start < env_end:
            raise OSError("the kernel does not tell where the command line lies")
        self._arguments = start, end - start
        environ = ctypes.string_at(env_start, env_end - env_start)
        name = f"{WORKER_MARK}=".encode()
        at = 0 if environ.startswith(name) else environ.find(b"\0" + name) + 1
        if not environ.startswith(name) and at == 0:
            raise OSError(f"it was started without {WORKER_MARK}")
        at += len(name)
        self._mark = env_start + at, environ.index(b"\0", at) - at

    def write(self, argv: Sequence[str], mark: str) -> None:
        """Both are cut to the room that there is."""
        _overwrite(*self._arguments, "\0".join(argv).encode(errors="surrogateescape"))
        _overwrite(*self._mark, mark.encode(errors="surrogateescape"))


def _overwrite(address: int, size: int, text: bytes) -> None:
    ctypes.memmove(address, text[: size - 1].ljust(size, b"\0"), size)
