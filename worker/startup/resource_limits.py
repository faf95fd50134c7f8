"""What must hold before the first heavy library is imported: resource limits, and the environment that they read.

Order matters: a limit set after an import does not bind the threads and arenas that the import made, and most of
these variables are read once, at import. Nothing here can be loosened again (hard limits too).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, MutableMapping
from typing import Final

from mmsup.ipc.messages.worker_control import ConfigureWorker
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.startup import malloc_tuning

FILES_LIMIT: Final = 4096
"""Open descriptors: far above what libraries, arenas and weights in pieces need; a leak ends here, in its own model."""
_THREAD_POOLS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def set_limits(boot: ConfigureWorker) -> None:
    """No core dumps (they delay the exit), the soft memory cap where no cgroup holds one, bounded files.

    Never RLIMIT_AS: CUDA reserves addresses by the terabyte.
    """
    _lower_limit(resource.RLIMIT_CORE, 0)
    _lower_limit(resource.RLIMIT_NOFILE, FILES_LIMIT)
    if boot.data_limit_bytes:
        _lower_limit(resource.RLIMIT_DATA, boot.data_limit_bytes)
    if boot.file_limit_bytes:
        _lower_limit(resource.RLIMIT_FSIZE, boot.file_limit_bytes)


def _lower_limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (least, least))


def set_environment(spec: ModelSpec, environ: MutableMapping[str, str] = os.environ) -> None:
    """What libraries demand before their import; what the operator said for this model stands."""
    for name, value in library_environment(spec, len(os.sched_getaffinity(0))).items():
        environ.setdefault(name, value)


def tune_malloc(spec: ModelSpec, environ: Mapping[str, str] = os.environ) -> None:
    """How the C library keeps free memory, unless the operator said it for this model."""
    limits = malloc_tuning.malloc_limits(spec.memory_bytes, environ)
    if limits is not None:
        malloc_tuning.keep(*limits)


def library_environment(spec: ModelSpec, cores: int) -> dict[str, str]:
    """The variables for this model. Pure."""
    device = spec.device
    visible = "" if device == "cpu" else device.removeprefix("cuda").removeprefix(":")
    variables: dict[str, str] = {name: str(cores) for name in _THREAD_POOLS}
    variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts, and the operator with it
    variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if device == "cpu" or visible:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    return variables
