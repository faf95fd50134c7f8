"""Runs a plan of faults against one compared server with the parts of `mmsup chaos`; returns its timeline.

The server has two equal models, of which only the second gets faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drivers.peer import Peer
from environment import InstallError
from network import OnnxNetwork
from peer_adapter import PeerAdapter
from progress import log_progress
from restarter import Restarter
from server import Server, StartError
from work import Scene

from mmsup.supervisor.chaos.analysis.timeline import Timeline, timeline_of
from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import FaultClass, ModelRole, select_faults
from mmsup.supervisor.chaos.runner import ChaosOptions, run_against
from mmsup.supervisor.chaos.server.target import Target

LIMIT_S = 5.0
"""Limit of one inference, for servers that have such a setting."""
CAP_BYTES = 4 << 30
"""Memory limit of the whole server, for those without a limit of their own."""
GROUPS = Path("/sys/fs/cgroup/memory")
SCENE = Scene("chaos", "harmful", (-1,), (), models=2, limit_s=LIMIT_S)
HEALTHY, FAULTY = SCENE.names
REQUEST_TIMEOUT_S = 15.0
"""A request without an answer by then has failed."""
COOLDOWN_S = 3.0
"""How long the load continues after the last fault."""
TROUBLE = (StartError, InstallError, OSError, RuntimeError)
"""Why a server could not be measured."""
IMPOSSIBLE = "a memory control group (cgroup v1, as root) is needed: some servers have no cap of their own"
UNAVAILABLE_S = 20.0
"""A model that does not answer for so long counts as lost."""


@dataclass(frozen=True)
class FaultPlan:
    """The plan, the same for every server."""

    seed: int
    before_s: float
    """Without faults."""
    season_s: float
    """Time in which faults are injected, without the time that a model is unavailable."""
    every_s: tuple[float, float]
    rate: float
    faults: tuple[FaultClass, ...]


def faults_of(names: Sequence[str]) -> tuple[FaultClass, ...]:
    """Fault classes of chaos, adapted to the model of the benchmarks, which allocates until it is killed."""
    found = []
    for fault in select_faults(",".join(names)):
        amount = float(2 * CAP_BYTES >> 20) if fault.mode == "allocate" else fault.amount
        found.append(replace(fault, role=fault.role and ModelRole.CRASHY, requires="", amount=amount))
    return tuple(found)


def run_plan(
    peer: Peer, environment: Path, mlp: OnnxNetwork, plan: FaultPlan, history_file: Path | None = None
) -> Timeline:
    """Start a server, run the plan, stop it. Raises one of `TROUBLE`, or a group of them, if it cannot be started or
    restarted."""
    history = History(history_file)
    gc.disable()  # a pause of this process would count as one of the server
    try:
        with memory_group() as before, Server(peer, SCENE, environment, mlp, before) as server:
            server.wait_until_correct()
            asyncio.run(_run_plan(peer, server, plan, history))
    finally:
        gc.enable()
        history.close()
    return timeline_of(history.records)


async def _run_plan(peer: Peer, server: Server, plan: FaultPlan, history: History) -> None:
    options = ChaosOptions(
        plan.seed, plan.before_s + plan.season_s + COOLDOWN_S, plan.every_s, plan.rate, plan.faults, {},
        fault_free_s=plan.before_s, cooldown_s=COOLDOWN_S, request_timeout_s=REQUEST_TIMEOUT_S, wait_for_recovery=True,
    )  # fmt: skip
    target = Target(
        HttpClient("127.0.0.1", server.port),
        {HEALTHY: ModelRole.HEALTHY, FAULTY: ModelRole.CRASHY},
        title=peer.name,
        operator=Restarter(server, history, UNAVAILABLE_S),
    )
    await run_against(target, options, PeerAdapter(peer, SCENE), history, lambda text: log_progress(f"  {text}"))


def not_measured(error: BaseException) -> str:
    """The first error as text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"not measured: {error}"


@contextlib.contextmanager
def memory_group() -> Iterator[list[str]]:
    """A memory control group (v1, as root) for one server; yields the command prefix that enters it."""
    folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_", dir=GROUPS))
    try:
        (folder / "memory.limit_in_bytes").write_text(str(CAP_BYTES))
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(folder)


def has_memory_groups() -> bool:
    """Whether memory control groups are available."""
    return os.access(GROUPS, os.W_OK)


def _remove(folder: Path) -> None:
    """Remove an empty group; the kernel may still count processes that have just exited."""
    limit = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)
