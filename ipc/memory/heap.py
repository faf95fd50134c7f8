"""The memory that malloc holds for this process: how much is resident, and returning what is free to the system.

With a C library other than glibc nothing is returned.
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import Any

_PAGE_BYTES = resource.getpagesize()


def trim_heap(library: Any = None) -> bool:  # a C library, as ctypes has it
    """Return free memory to the system, holes too; whether there was any."""
    trim = getattr(library or ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim.argtypes = [ctypes.c_size_t]
    return bool(trim(0))


def private_bytes() -> int:
    """Resident memory of this process without shared pages."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_bytes().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES
