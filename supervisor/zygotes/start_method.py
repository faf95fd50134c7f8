"""How a worker is started: by a fork of a zygote, or by exec. Pure.

A zygote is an interpreter that has imported an engine (worker/zygote). Workers of one interpreter and one engine set
share it. It takes memory too, so it is there from the second worker on, and pays from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.messages.zygote_control import ENGINE_SETS
from mmsup.ipc.specs import ModelSpec

LEAST_WORKERS: Final = {"none": 0, "auto": 2, "eager": 1}
"""By the server's option `zygotes`: how many workers that want the same zygote make it start; 0: none ever."""
EAGER_SETS: Final = ("numpy",)
"""With `eager`, of the server's own interpreter, before any worker wants them."""
_ENGINE_SETS: Final = {"ort": "onnxruntime", "pytorch": "torch"}
_READ_AT_START: Final = ("LD_", "MALLOC_", "GLIBC_", "PYTHON", "LANG", "LC_")
"""Beginnings of variables that the C library or the interpreter read when a program starts."""
_READ_AT_IMPORT: Final = (
    *("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NPY_", "NUMPY_"),
    *("TORCH_", "PYTORCH_", "ATEN_", "ONEDNN_", "DNNL_", "ORT_"),
)
"""Of those that libraries read when they are imported."""
_SET_AFTER_FORK: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Of these, the ones that a forked worker sets by the libraries' functions (worker/zygote/thread_pools.py)."""


@dataclass(frozen=True, slots=True)
class ZygoteKey:
    interpreter: str
    engine_set: str
    """One of ENGINE_SETS (ipc/messages/zygote_control.py)."""


def engine_set(spec: ModelSpec, learnt: str) -> str:
    """What the zygote of its workers has imported. `learnt`: what the class had imported the last time, empty if it
    has not been loaded yet."""
    return spec.preload or _ENGINE_SETS.get(spec.engine, learnt or spec.imports or "numpy")


def exec_reason(spec: ModelSpec) -> str:
    """Why its workers are never forked; empty if they may be."""
    if spec.start == "exec":
        return "its configuration says so (start: exec)"
    if spec.device != "cpu" and not spec.preload:
        return f"its device is {spec.device}, and its configuration does not say of what to fork it (preload)"
    for name in spec.env:
        if name.startswith(_READ_AT_START):
            return f"its env has {name}, which takes effect when a program starts"
        if name.startswith(_READ_AT_IMPORT) and name not in _SET_AFTER_FORK:
            return f"its env has {name}, which takes effect when a library is imported"
    return ""


def wanted_zygotes(workers: Iterable[ZygoteKey], mode: str, own_interpreter: str) -> set[ZygoteKey]:
    """Which zygotes there should be. `workers`: of each worker that is there or about to start, and may be forked."""
    least = LEAST_WORKERS[mode]
    if not least:
        return set()
    eager = {ZygoteKey(own_interpreter, each) for each in EAGER_SETS} if mode == "eager" else set[ZygoteKey]()
    return eager | {key for key, count in Counter(workers).items() if count >= least}


class KnownImports:
    """What the Python class of each model had imported the last time it was loaded. One word for each model."""

    def __init__(self, own_interpreter: str) -> None:
        self._own_interpreter = own_interpreter
        self._learnt: dict[str, str] = {}

    def learn(self, spec: ModelSpec, imported: Iterable[str]) -> None:
        """A worker is ready, and its interpreter has imported these; words that mean nothing here are passed over."""
        if spec.engine not in _ENGINE_SETS:
            known = set(imported)
            self._learnt[spec.name] = next((each for each in reversed(ENGINE_SETS) if each in known), "numpy")

    def key(self, spec: ModelSpec) -> ZygoteKey:
        """The zygote of which its workers are forked."""
        return ZygoteKey(spec.python or self._own_interpreter, engine_set(spec, self._learnt.get(spec.name, "")))
