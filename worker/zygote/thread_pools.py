"""Sets the sizes of the libraries' thread pools after a fork.

The variables OMP_NUM_THREADS and so on are read when a library is loaded, and then the zygote was told to start no
thread. So a forked worker says the sizes of its own environment by the libraries' functions.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

_FUNCTIONS: Final = {
    "openblas": (
        "OPENBLAS_NUM_THREADS",
        (
            *("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads"),
            *("openblas_set_num_threads64_", "openblas_set_num_threads"),
        ),
    ),
    "gomp": ("OMP_NUM_THREADS", ("omp_set_num_threads",)),
    "iomp5": ("OMP_NUM_THREADS", ("omp_set_num_threads",)),
    "omp": ("OMP_NUM_THREADS", ("omp_set_num_threads",)),
    "mkl_rt": ("MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
}
"""A library by the name of its file, the variable that it reads, and its function of the same effect."""
_FILE: Final = re.compile(r"lib(?:scipy_)?(openblas|gomp|iomp5|omp|mkl_rt)[^/]*\.so[^/]*$")


class ThreadPools:
    """Those that are loaded when this is made: found before a fork, and set after it."""

    def __init__(self) -> None:
        self._setters: list[tuple[str, Callable[[int], Any]]] = []  # the library's own result
        for path, kind in _loaded_libraries():
            variable, names = _FUNCTIONS[kind]
            library = ctypes.CDLL(path)
            found = next((getattr(library, name) for name in names if hasattr(library, name)), None)
            if found is not None:
                self._setters.append((variable, found))
        torch = sys.modules.get("torch")
        if torch is not None:
            self._setters.append(("OMP_NUM_THREADS", torch.set_num_threads))

    def set_sizes(self, environ: Mapping[str, str]) -> None:
        for variable, set_size in self._setters:
            count = environ.get(variable, "").partition(",")[0].strip()
            if count.isdecimal() and int(count) > 0:
                set_size(int(count))


def _loaded_libraries() -> list[tuple[str, str]]:
    """Path and kind of each."""
    paths = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return [(path, match[1]) for path in sorted(paths) if (match := _FILE.search(path))]
