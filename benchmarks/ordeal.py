"""One server of the comparison under a plan of faults: started, asked, hurt, looked after; what was seen as a story.

Client, plan, payloads and history are those of `mmsup chaos`. Two models that are alike: the first is left in peace.
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

from caretaker import Restarter
from dialect import PeerAdapter
from drivers.peer import Peer
from environment import InstallError
from network import OnnxNetwork
from progress import log_progress
from server import Server, StartError
from work import Scene

from mmsup.supervisor.chaos.analysis.timeline import Timeline, timeline_of
from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import FaultClass, ModelRole, select_faults
from mmsup.supervisor.chaos.runner import ChaosOptions
from mmsup.supervisor.chaos.runner_runs import run_against
from mmsup.supervisor.chaos.server.target import Target

LIMIT_S = 5.0
"""For a run, where a server can be told."""
CAP_BYTES = 4 << 30
"""For a whole server: what no cap inside it stops, the kernel stops here."""
GROUPS = Path("/sys/fs/cgroup/memory")
SCENE = Scene("chaos", "harmful", (-1,), (), models=2, limit_s=LIMIT_S)
HEALTHY, FAULTY = SCENE.names
REQUEST_TIMEOUT_S = 15.0
"""A request that has no answer by then has failed."""
COOLDOWN_S = 3.0
"""How long clients go on after the last fault."""
TROUBLE = (StartError, InstallError, OSError, RuntimeError)
"""Why a server could not be measured."""
IMPOSSIBLE = "a memory control group (cgroup v1, as root) is needed: some servers have no cap of their own"
UNAVAILABLE_S = 20.0
"""A model that does not answer for so long is away for good."""


@dataclass(frozen=True)
class FaultPlan:
    """What every server goes through."""

    seed: int
    before_s: float
    """Without faults."""
    season_s: float
    """In which they begin, without the time that a model was away."""
    every_s: tuple[float, float]
    rate: float
    faults: tuple[FaultClass, ...]


def faults_of(names: Sequence[str]) -> tuple[FaultClass, ...]:
    """Faults of chaos's, as they are done to the model of the benchmarks: it takes memory until it is ended."""
    found = []
    for fault in select_faults(",".join(names)):
        amount = float(2 * CAP_BYTES >> 20) if fault.mode == "allocate" else fault.amount
        found.append(replace(fault, role=fault.role and ModelRole.CRASHY, requires="", amount=amount))
    return tuple(found)


def run_plan(
    peer: Peer, environment: Path, mlp: OnnxNetwork, plan: FaultPlan, history_file: Path | None = None
) -> Timeline:
    """One server, from its start to its end. One of `TROUBLE`, or a group of them, if it cannot be started, at first
    or again."""
    history = History(history_file)
    gc.disable()  # a pause of ours would be told as one of the server's
    try:
        with memory_group() as before, Server(peer, SCENE, environment, mlp, before) as server:
            server.wait_until_correct()
            asyncio.run(_run_plan(peer, server, plan, history))
    finally:
        gc.enable()
        history.close()
    return timeline_of(history.records)


async def _run_plan(peer: Peer, server: Server, plan: FaultPlan, history: History) -> None:
    strays: list[int] = []
    course = ChaosOptions(
        plan.seed, plan.before_s + plan.season_s + COOLDOWN_S, plan.every_s, plan.rate, plan.faults, {},
        fault_free_s=plan.before_s, cooldown_s=COOLDOWN_S, request_timeout_s=REQUEST_TIMEOUT_S, wait_for_recovery=True,
    )  # fmt: skip
    target = Target(
        HttpClient("127.0.0.1", server.port, strays.append),
        {HEALTHY: ModelRole.HEALTHY, FAULTY: ModelRole.CRASHY},
        title=peer.name,
        operator=Restarter(server, history, UNAVAILABLE_S),
    )
    await run_against(target, strays, course, PeerAdapter(peer, SCENE), history, lambda text: log_progress(f"  {text}"))


def not_measured(error: BaseException) -> str:
    """The first reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"not measured: {error}"


@contextlib.contextmanager
def memory_group() -> Iterator[list[str]]:
    """A memory control group (v1, as root) for one server: the words before its command that put it there."""
    folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_", dir=GROUPS))
    try:
        (folder / "memory.limit_in_bytes").write_text(str(CAP_BYTES))
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(folder)


def has_memory_groups() -> bool:
    """Whether there can be such a group."""
    return os.access(GROUPS, os.W_OK)


def _remove(folder: Path) -> None:
    """What ran there has ended; the kernel may need a moment to see it."""
    limit = time.monotonic() + 10
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.05)
