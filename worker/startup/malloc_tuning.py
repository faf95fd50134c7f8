"""Tunes glibc's malloc: free memory is kept for the next run, and returned to the system when the worker is idle.

A model that makes large arrays allocates and frees them in each run. By default glibc maps and unmaps them each time,
so each run takes page faults, and the kernel zeroes page after page. A copy of the input and the double of it, by numpy
2.4 (glibc 2.36, huge pages by madvise, 2-core VM, kernel 6.18), without the limits below and with them:

    2 x 602 KB     262 page faults    0.63 ms    none    0.08 ms
    2 x 12.6 MB  1,002                5.2                2.1

The price: up to MAX_FREE_BYTES of free memory at the end of the heap, and holes in it, stay resident between two runs.
They are reused first, so the peak of a run does not rise by them. An idle worker returns both. Arrays of more than
MMAP_BYTES are mapped and unmapped as before: a few of those would leave the largest holes.

The heap of an ONNX model is in huge pages where the kernel gives them on request (`HUGE_PAGES`, which is set before the
start). What a library keeps of a model lies scattered in it: a run of a graph of a thousand thin layers takes 0.55 ms
instead of 0.61, and 0.59 instead of 0.77 after another process has had the core (medians of CPU time, onnxruntime 1.32,
glibc 2.36, 2-core VM). The price: up to 2 MiB more of resident memory.

With a C library other than glibc all this does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Final

MAX_FREE_BYTES: Final = 128 << 20
"""Free memory at the end of the heap that is not returned: ten arrays of 12.6 MB."""
CAP_DIVISOR: Final = 8
"""At most the memory cap divided by this: the rest of the process (weights, a child) needs memory too."""
MMAP_BYTES: Final = 32 << 20
"""glibc's own maximum (DEFAULT_MMAP_THRESHOLD_MAX), to which its dynamic threshold could grow."""
IDLE_NS: Final = 2_000_000_000
"""After so long without a run the memory is returned. That takes 0.5 ms for 25 MB in one piece, but 105 ms for 80 MB in
10,000 holes: it must not happen between two requests of the same caller."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_OPERATOR_VARIABLES: Final = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""If the operator tunes malloc by one of these, it is left alone."""


def malloc_limits(cap_bytes: int | None, environ: Mapping[str, str]) -> tuple[int, int] | None:
    """How many bytes to keep free, and the size from which on an array is mapped by itself; None to change nothing."""
    if any(name in environ for name in _OPERATOR_VARIABLES):
        return None
    free = min(MAX_FREE_BYTES, cap_bytes // CAP_DIVISOR) if cap_bytes else MAX_FREE_BYTES
    return free, min(MMAP_BYTES, free)


def set_malloc_limits(free_bytes: int, mmap_bytes: int, library: Any = None) -> bool:  # a C library, as ctypes has it
    """Set the limits; False if the C library refuses. Must precede the imports that allocate."""
    set_option = getattr(library or ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_M_TRIM_THRESHOLD, free_bytes)) and bool(set_option(_M_MMAP_THRESHOLD, mmap_bytes))


class TrimSchedule:
    """When to return memory: once, IDLE_NS after the last run. Pure."""

    def __init__(self) -> None:
        self.last_run_ns = 0
        """Monotonic time, set after each run; 0 after memory was returned."""

    def is_due(self, now_ns: int) -> bool:
        """Whether to return memory now; asked by an idle loop at each heartbeat."""
        if not self.last_run_ns or now_ns - self.last_run_ns < IDLE_NS:
            return False
        self.last_run_ns = 0
        return True
