"""How a worker or a gateway is started: arguments, environment, directory. Pure, except for one link on disk.

The environment is an allow-list: a variable that is not named here does not reach a model. A model's own `env` wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import mmsup
from mmsup.ipc.environment import BLAS_WAIT, DUMPABLE, HUGE_PAGES, SOFT_FILES, WORKER_MARK
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.ipc.paths import WorkerId, worker_name
from mmsup.ipc.specs import ModelSpec
from mmsup.supervisor.linux import cgroup_backend
from mmsup.supervisor.linux.worker_marks import worker_mark

INHERITED_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
GATEWAY_OOM_ADJ: Final = -800
RPC_FRONT_OOM_ADJ: Final = 0
"""After workers, which hold far more; before gateways, since only its own calls are lost with it."""
RPC_LISTENERS: Final = ("grpc", "grpc_unix")
RELAY_LISTENER: Final = "relay"
"""On which gateways take calls from the gRPC front process."""
WORKER_OOM_ADJ: Final = 300
"""The kernel kills a worker for memory before any of the server's own processes."""
ZYGOTE_OOM_ADJ: Final = 200
"""After the workers: it is small, and holds pages that they share."""
TITLE_BYTES: Final = 400
"""Room in a zygote's command line for that of a worker, which it gives its forks (worker/zygote/process_titles.py)."""
WORKER_MARK_BYTES: Final = 64
_ROOM: Final = "-"
"""Of such characters the mark of a zygote is made: it names no worker."""
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


FORK_LIMIT_S: Final = 1.0
"""From the request until the zygote has answered, which takes 2 to 7 ms on an idle machine. It does nothing else."""
IMPORT_LIMIT_S: Final = 30.0
"""The same of a zygote that has not imported everything yet; an exec has the same imports to make."""


FORKED: Final = "forked"
"""How the text of such a start begins."""


@dataclass(frozen=True, slots=True)
class StartMethod:
    """How a worker is started, as zygotes/start_method.py decides."""

    zygote: str = ""
    """The token of the zygote that forks it; empty: exec."""
    reason: str = ""
    """Why so, for people."""
    waits: bool = False
    """That zygote is still importing, and the worker waits for it."""

    @property
    def text(self) -> str:
        return f"{FORKED if self.zygote else 'exec'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LaunchEnvironment:
    """What is the same for all processes of a server."""

    base_env: Mapping[str, str]
    """The environment of the server itself, of which only INHERITED_VARIABLES are passed on."""
    scratch: str
    """The directory in which each worker gets one of its own."""
    runtime_dir: str
    cores: int


def worker_token(instance: int, generation: int) -> str:
    """The name of one worker process between controller and keeper."""
    return f"worker.{instance}.{generation}"


def gateway_token(seat: int, generation: int) -> str:
    """The name of one gateway process between controller and keeper."""
    return f"gateway.{seat}.{generation}"


def zygote_token(number: int, generation: int) -> str:
    """The name of one zygote between controller and keeper."""
    return f"zygote.{number}.{generation}"


def zygote_name(number: int, generation: int) -> str:
    """The name of a zygote's control group; never reused."""
    return f"z{number}.{generation}"


def host_token(number: int) -> str:
    """The name of the process of a co-location group between controller and keeper."""
    return f"host.{number}.1"


def rpc_front_token(number: int, generation: int) -> str:
    """The name of one gRPC front process between controller and keeper; `generation`: that of the controller."""
    return f"front.{number}.{generation}"


def public_addresses(addresses: Mapping[str, str]) -> dict[str, str]:
    """Of the listeners that clients connect to."""
    return {name: each for name, each in addresses.items() if name not in ("control", RELAY_LISTENER)}


def parse_token(token: str) -> tuple[str, int, int] | None:
    """Role, instance or seat, and generation; None if it is not such a token."""
    role, _, rest = token.partition(".")
    number, _, generation = rest.partition(".")
    if role in ("worker", "gateway", "zygote", "host", "front") and number.isdecimal() and generation.isdecimal():
        return role, int(number), int(generation)
    return None


def worker_spawn(
    spec: ModelSpec,
    worker: WorkerId,
    environment: LaunchEnvironment,
    procs_files: tuple[str, ...],
    visible_devices: str,
    start: StartMethod = StartMethod(),
) -> Spawn:
    instance, generation = worker
    scratch = scratch_dir(environment, worker)
    env = {
        **_interpreter_env(environment, spec.python),
        "HOME": scratch,
        "TMPDIR": scratch,
        "CUDA_VISIBLE_DEVICES": visible_devices,
    }
    if SOFT_FILES in environment.base_env:
        env[SOFT_FILES] = environment.base_env[SOFT_FILES]
    if spec.engine == "ort":
        env[HUGE_PAGES[0]] = HUGE_PAGES[1]
    server = cgroup_backend.top_name(str(Path(environment.scratch).parent))
    env |= {**spec.env, WORKER_MARK: worker_mark(server, worker_name(*worker))}
    label = f"{spec.name}/{spec.version}#{instance}"
    note = json.dumps({"model": spec.name, "version": spec.version, "start": start.text})
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
        zygote=start.zygote,
        fork_limit_s=IMPORT_LIMIT_S if start.waits else FORK_LIMIT_S,
    )


def host_spawn(worker: Spawn, number: int, group: str, note: str) -> Spawn:
    """The process of a co-location group. `worker`: as its first member would be started by itself."""
    argv = (*worker.argv[:-1], f"group:{group}#{number}")
    return replace(worker, token=host_token(number), argv=argv, note=note)


def member_spawn(worker: WorkerId, host: int) -> Spawn:
    """One more model in the process of its co-location group."""
    return Spawn(
        token=worker_token(*worker),
        argv=(),
        env={},
        cwd="",
        procs_files=(),
        listeners=(),
        counter_tables=False,
        oom_score_adj=WORKER_OOM_ADJ,
        note=json.dumps({"host": host, "start": f"in the process of its group, {host}"}),
        host=host_token(host),
    )


def zygote_spawn(
    interpreter: str,
    engine_set: str,
    zygote: WorkerId,
    environment: LaunchEnvironment,
    procs_files: tuple[str, ...],
    note: str,
) -> Spawn:
    """`zygote`: number and generation."""
    own = interpreter == sys.executable
    env = {
        **_interpreter_env(environment, "" if own else interpreter),
        "HOME": "/",
        "TMPDIR": environment.runtime_dir,
        "CUDA_VISIBLE_DEVICES": "",
        # One thread, or nothing can be forked. The other pools are started at their first use.
        "OPENBLAS_NUM_THREADS": "1",
        BLAS_WAIT[0]: BLAS_WAIT[1],
        "ORT_DISABLE_TELEMETRY": "1",
        WORKER_MARK: _ROOM * WORKER_MARK_BYTES,
    }
    if engine_set == "onnxruntime":
        env[HUGE_PAGES[0]] = HUGE_PAGES[1]
    return Spawn(
        token=zygote_token(*zygote),
        argv=(interpreter, "-m", "mmsup.worker.zygote", " " * TITLE_BYTES),
        env=env,
        cwd="/",
        procs_files=procs_files,
        listeners=(),
        counter_tables=False,
        oom_score_adj=ZYGOTE_OOM_ADJ,
        note=note,
        is_zygote=True,
    )


def gateway_spawn(
    number: int,
    generation: int,
    environment: LaunchEnvironment,
    listeners: tuple[str, ...],
    procs_files: tuple[str, ...] = (),
) -> Spawn:
    env = {**_common_env(environment), "HOME": "/", "TMPDIR": environment.runtime_dir}
    if DUMPABLE in environment.base_env:
        env[DUMPABLE] = environment.base_env[DUMPABLE]
    return Spawn(
        token=gateway_token(number, generation),
        argv=(sys.executable, "-m", "mmsup.gateway", f"gateway#{number}"),
        env=env,
        cwd="/",
        procs_files=procs_files,
        listeners=listeners,
        counter_tables=True,
        oom_score_adj=GATEWAY_OOM_ADJ,
        note="",
    )


def rpc_front_spawn(front: WorkerId, environment: LaunchEnvironment, options: str, listeners: tuple[str, ...]) -> Spawn:
    """`front`: number and generation. `options`: an RpcFrontOptions in JSON."""
    env = {**_common_env(environment), "HOME": "/", "TMPDIR": environment.runtime_dir}
    if DUMPABLE in environment.base_env:
        env[DUMPABLE] = environment.base_env[DUMPABLE]
    return Spawn(
        token=rpc_front_token(*front),
        argv=(sys.executable, "-m", "mmsup.gateway.grpcio_front", options),
        env=env,
        cwd="/",
        procs_files=(),
        listeners=listeners,
        counter_tables=False,
        oom_score_adj=RPC_FRONT_OOM_ADJ,
        note="",
    )


def scratch_dir(environment: LaunchEnvironment, worker: WorkerId) -> str:
    """The directory that one worker may write to; created before its start, removed after its exit."""
    return str(Path(environment.scratch) / worker_name(*worker))


def package_link_dir(runtime_dir: str) -> str:
    """A directory with a link to this package and nothing else, for an interpreter that has its own packages."""
    folder = Path(runtime_dir) / "lib"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (folder / "mmsup").symlink_to(Path(next(iter(mmsup.__path__))).absolute())
    return str(folder)


def _interpreter_env(environment: LaunchEnvironment, python: str) -> dict[str, str]:
    """Of a worker's interpreter, that of its zygote included. `python`: one of the model's own; else empty."""
    env = {
        **_common_env(environment),
        "PYTHONSAFEPATH": "1",  # what the model calls its files shadows no module; -P would be a fault to an old Python
        "PYTHONDONTWRITEBYTECODE": "1",  # the model directory belongs to its owner
        # Thread pools as large as the machine: the kernel schedules the cores among the instances.
        **dict.fromkeys(THREAD_VARIABLES, str(environment.cores)),
    }
    if python:
        env["PYTHONPATH"] = package_link_dir(environment.runtime_dir)
    return env


def _common_env(environment: LaunchEnvironment) -> dict[str, str]:
    inherited = {name: environment.base_env[name] for name in INHERITED_VARIABLES if name in environment.base_env}
    return {"PATH": os.defpath, **inherited, "PYTHONUNBUFFERED": "1"}
