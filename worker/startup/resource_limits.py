"""Sets resource limits and the environment variables of libraries, before the first heavy library is imported.

Order matters: a limit set after an import does not bind the threads and arenas that the import made, and most of the
variables are read once, at import. Hard limits are lowered too, so that the model cannot raise them again.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, MutableMapping
from typing import Final

from mmsup.ipc.environment import BLAS_WAIT, HUGE_PAGES, SOFT_FILES
from mmsup.ipc.messages.worker_control import ConfigureWorker
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.startup import malloc_tuning

FILES_LIMIT: Final = 4096
"""Open descriptors at most: far more than libraries, arenas and sharded weights need; a leak fails here, in its own
worker. A model may raise its soft limit up to here; it begins with the one that the server was started with."""
_THREAD_POOLS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
TELEMETRY_SWITCHES: Final = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
"""A server reports to nobody that it serves. onnxruntime 1.32 otherwise starts a thread at its import and makes a
database of events in the user's cache folder; huggingface_hub names its caller and the libraries around it in requests;
the last is what several others read. What a model itself fetches, it still may."""


def set_limits(configuration: ConfigureWorker) -> None:
    """No core dumps (they delay the exit), the memory cap where no cgroup enforces one, bounded files.

    Never RLIMIT_AS: CUDA reserves addresses by the terabyte.
    """
    _lower_limit(resource.RLIMIT_CORE, 0)
    _lower_limit(resource.RLIMIT_NOFILE, FILES_LIMIT, int(os.environ.pop(SOFT_FILES, FILES_LIMIT)))
    if configuration.data_limit_bytes:
        _lower_limit(resource.RLIMIT_DATA, configuration.data_limit_bytes)
    if configuration.file_limit_bytes:
        _lower_limit(resource.RLIMIT_FSIZE, configuration.file_limit_bytes)


def _lower_limit(kind: int, limit: int, soft: int = resource.RLIM_INFINITY) -> None:
    """Set the hard limit, and the soft one to `soft` if that is less."""
    _, hard = resource.getrlimit(kind)
    least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (least if soft == resource.RLIM_INFINITY else min(soft, least), least))


def set_environment(spec: ModelSpec, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that libraries read at import; those that the operator set for this model stay."""
    for name, value in library_environment(spec, len(os.sched_getaffinity(0))).items():
        environ.setdefault(name, value)
    if "PYTHONSAFEPATH" not in spec.env:
        environ.pop("PYTHONSAFEPATH", None)  # it is for this process; programs that the model starts are as ever
    name, value = HUGE_PAGES
    if name not in spec.env and environ.get(name) == value:
        del environ[name]  # likewise


def tune_malloc(spec: ModelSpec, environ: Mapping[str, str] = os.environ) -> None:
    """Have the C library keep free memory, unless the operator configured it for this model."""
    limits = malloc_tuning.malloc_limits(spec.memory_bytes, environ)
    if limits is not None:
        malloc_tuning.set_malloc_limits(*limits)


def library_environment(spec: ModelSpec, cores: int) -> dict[str, str]:
    device = spec.device
    visible = "" if device == "cpu" else device.removeprefix("cuda").removeprefix(":")
    variables: dict[str, str] = {name: str(cores) for name in _THREAD_POOLS} | TELEMETRY_SWITCHES
    variables[BLAS_WAIT[0]] = BLAS_WAIT[1]
    variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the numbering of NVML and nvidia-smi
    variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if device == "cpu" or visible:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    return variables
