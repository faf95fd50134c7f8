"""The C library's heap: free memory is kept for the next run, and given back to the machine when none comes.

A model that makes large arrays allocates and frees them in each run. glibc asks the kernel for them and gives them back
at once, so each run meets fresh pages, which the kernel fills with zeros one by one. A copy of the input and the double
of it, by numpy 2.4 (glibc 2.36, huge pages by madvise, 2-core VM, kernel 6.18), without the limits below and with them:

    2 x 602 KB     262 page faults    0.63 ms    none    0.08 ms
    2 x 12.6 MB  1,002                5.2                2.1

What it costs: up to KEPT_BYTES of free memory at the end of the heap, and holes in it, stay resident between two runs.
They are the first to be used again, so that the peak of a run does not rise by them. An idle worker gives both back.
Arrays beyond ARRAY_BYTES are mapped and unmapped as before: a few of those would leave the largest holes.

By a C library other than glibc all this does nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Final

MAX_FREE_BYTES: Final = 128 << 20
"""Free memory at the end of the heap that is not given back: ten arrays of 12.6 MB."""
CAP_DIVISOR: Final = 8
"""Of a model's memory cap at most this part: what others of this process want (weights, a child) must find room."""
MMAP_BYTES: Final = 32 << 20
"""glibc's own largest limit (DEFAULT_MMAP_THRESHOLD_MAX), to which it would rise by itself with what is freed."""
IDLE_NS: Final = 2_000_000_000
"""Idle for this long means that the next run may pay for its pages. Giving back takes 0.5 ms for 25 MB in one piece,
but 105 ms for 80 MB in 10,000 holes: it must not stand between two requests of the same caller."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3  # malloc.h
_OPERATOR_VARIABLES: Final = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Variables by which an operator says how the heap is to be; they stand."""


def malloc_limits(cap_bytes: int | None, environ: Mapping[str, str]) -> tuple[int, int] | None:
    """How much free memory to keep, and from which size on an array is mapped by itself; None to leave all as it is.
    Pure."""
    if any(name in environ for name in _OPERATOR_VARIABLES):
        return None
    kept = min(MAX_FREE_BYTES, cap_bytes // CAP_DIVISOR) if cap_bytes else MAX_FREE_BYTES
    return kept, min(MMAP_BYTES, kept)


def keep(kept_bytes: int, array_bytes: int, library: Any = None) -> bool:  # a C library, as ctypes has it
    """Set the limits; whether they hold. To be called before the libraries that allocate."""
    set_option = getattr(library or ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_M_TRIM_THRESHOLD, kept_bytes)) and bool(set_option(_M_MMAP_THRESHOLD, array_bytes))


def trim_heap(library: Any = None) -> bool:  # as above
    """Give free memory back to the machine, holes too; whether there was any."""
    trim = getattr(library or ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return False
    trim.argtypes = [ctypes.c_size_t]
    return bool(trim(0))


class TrimSchedule:
    """When to give back: once, after a run and then a while without one. Pure."""

    def __init__(self) -> None:
        self._last_run_ns = 0

    def on_run(self, now_ns: int) -> None:
        """A run is over."""
        self._last_run_ns = now_ns

    def is_due(self, now_ns: int) -> bool:
        """Whether memory is to be given back now; asked by an idle loop at each of its beats."""
        if not self._last_run_ns or now_ns - self._last_run_ns < IDLE_NS:
            return False
        self._last_run_ns = 0
        return True
