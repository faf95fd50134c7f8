"""Files of a model on their way from a gateway to the controller: one after the other in one memory file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PIECE_BYTES: Final = 1 << 20
"""Copied in one iteration of a loop."""


@dataclass(frozen=True, slots=True)
class UploadedFiles:
    """Among the arguments of a command. Whoever has it closes `fd`."""

    fd: int
    sizes: dict[str, int]
    """Bytes by name, which is VERSION/FILE, in the order of the memory file."""


async def pack_files(files: Mapping[str, bytes]) -> UploadedFiles:
    """OSError if there is no memory for it."""
    fd = os.memfd_create("mmsup_upload", os.MFD_CLOEXEC)
    try:
        for data in files.values():
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view[:PIECE_BYTES]) :]
                await asyncio.sleep(0)
    except BaseException:
        os.close(fd)
        raise
    return UploadedFiles(fd, {name: len(data) for name, data in files.items()})
