"""The hard limits of device memory that this machine offers: the dmem controller and MPS. Found anew at each use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.gpu.inventory import Gpu
from mmsup.supervisor.gpu.memory_rings import RingFacts, dmem_region, mps_limit, parse_regions
from mmsup.supervisor.linux.cgroup import Cgroup, read_file
from mmsup.supervisor.linux.cgroup_backend import ROOT

MPS_FOLDER: Final = "/tmp/nvidia-mps"  # noqa: S108 - the driver's own default
_MPS_FOLDER_VARIABLE: Final = "CUDA_MPS_PIPE_DIRECTORY"
_MPS_PID_FILE: Final = "nvidia-cuda-mps-control.pid"


def ring_facts(*, answers: bool, has_dmem: bool, root: Path = ROOT, mps_folder: str = MPS_FOLDER) -> RingFacts:
    """`has_dmem`: the groups of workers have the dmem controller. `root`: where the v2 tree is mounted."""
    regions = parse_regions(read_file(root / "dmem.capacity")) if has_dmem else ()
    return RingFacts(answers, regions, has_mps(mps_folder))


def limit_worker(
    spec: ModelSpec, gpu: Gpu | None, group: Cgroup, root: Path = ROOT, mps_folder: str = MPS_FOLDER
) -> Mapping[str, str]:
    """Set the limit of its group for a worker with `gpu_memory`, where there is one; its environment for MPS."""
    if not spec.gpu_memory_bytes or spec.device == "cpu":
        return {}
    if gpu is not None and group.folder is not None:
        region = dmem_region(gpu.pci, parse_regions(read_file(root / "dmem.capacity")))
        if region:
            group.set_device_cap(region, spec.gpu_memory_bytes)
    return mps_limit(spec.gpu_memory_bytes) if has_mps(spec.env.get(_MPS_FOLDER_VARIABLE, mps_folder)) else {}


def has_mps(folder: str) -> bool:
    """Whether an MPS daemon that uses this folder is alive; the folder alone may be left over."""
    pid = read_file(Path(folder) / _MPS_PID_FILE).strip("\0 \n")
    return pid.isdecimal() and os.path.exists(f"/proc/{pid}")
