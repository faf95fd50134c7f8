"""What a worker or a gateway is started with: arguments, environment, folder. Pure, but for one link on disk.

The environment is an allow-list: what is not named here does not reach a model. What a model's own `env` says wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mmsup
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.ipc.paths import worker_name
from mmsup.ipc.specs import ModelSpec

INHERITED_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
GATEWAY_OOM_ADJ: Final = -800
WORKER_OOM_ADJ: Final = 300
"""The kernel, short of memory, takes a worker before anything of ours."""
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class LaunchEnvironment:
    """What all processes of this server have in common."""

    base_env: Mapping[str, str]
    """The environment of the server itself, of which only INHERITED is handed on."""
    scratch: str
    """A folder in which each life gets one of its own."""
    runtime_dir: str
    cores: int


def worker_token(instance: int, generation: int) -> str:
    """The name of one life between brain and keeper."""
    return f"worker.{instance}.{generation}"


def gateway_token(seat: int, generation: int) -> str:
    """The name of one gateway process between brain and keeper."""
    return f"gateway.{seat}.{generation}"


def parse_token(token: str) -> tuple[str, int, int] | None:
    """Role, instance or place, and generation; None if it is none of our tokens."""
    role, _, rest = token.partition(".")
    number, _, generation = rest.partition(".")
    if role in ("worker", "gateway") and number.isdecimal() and generation.isdecimal():
        return role, int(number), int(generation)
    return None


def worker_spawn(
    spec: ModelSpec, life: tuple[int, int], place: LaunchEnvironment, procs_files: tuple[str, ...], visible_devices: str
) -> Spawn:
    """How a worker of `spec` is started. `life`: instance and generation."""
    instance, generation = life
    scratch = scratch_dir(place, life)
    env = {
        **_common_env(place),
        "HOME": scratch,
        "TMPDIR": scratch,
        "CUDA_VISIBLE_DEVICES": visible_devices,
        "PYTHONDONTWRITEBYTECODE": "1",  # the folder of a model is its owner's
        # A worker's thread pool as large as the machine: instances share the cores, the kernel shares them out.
        **dict.fromkeys(THREAD_VARIABLES, str(place.cores)),
    }
    if spec.python:
        env["PYTHONPATH"] = package_link_dir(place.runtime_dir)
    env |= spec.env
    label = f"{spec.name}/{spec.version}#{instance}"
    note = json.dumps({"model": spec.name, "version": spec.version})
    return Spawn(
        token=worker_token(instance, generation),
        argv=(spec.python or sys.executable, "-m", "mmsup.worker", label),
        env=env,
        cwd=spec.directory,
        procs_files=procs_files,
        listeners=(),
        counter_tables=False,
        oom_score_adj=WORKER_OOM_ADJ,
        note=note,
    )


def gateway_spawn(number: int, generation: int, place: LaunchEnvironment, listeners: tuple[str, ...]) -> Spawn:
    """How the gateway of one place is started."""
    env = {**_common_env(place), "HOME": "/", "TMPDIR": place.runtime_dir}
    return Spawn(
        token=gateway_token(number, generation),
        argv=(sys.executable, "-m", "mmsup.gateway", f"gateway#{number}"),
        env=env,
        cwd="/",
        procs_files=(),
        listeners=listeners,
        counter_tables=True,
        oom_score_adj=GATEWAY_OOM_ADJ,
        note="",
    )


def scratch_dir(place: LaunchEnvironment, life: tuple[int, int]) -> str:
    """The folder that one life may write to; made before its start, removed after its end."""
    return str(Path(place.scratch) / worker_name(*life))


def package_link_dir(runtime_dir: str) -> str:
    """A folder with a link to our package and nothing else, for an interpreter that has its own packages."""
    folder = Path(runtime_dir) / "lib"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "mmsup").symlink_to(Path(next(iter(mmsup.__path__))).absolute())
    return str(folder)


def _common_env(place: LaunchEnvironment) -> dict[str, str]:
    kept = {name: place.base_env[name] for name in INHERITED_VARIABLES if name in place.base_env}
    return {"PATH": os.defpath, **kept, "PYTHONUNBUFFERED": "1"}
