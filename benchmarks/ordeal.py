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

from caretaker import Caretaker
from dialect import Dialect
from drivers.peer import Peer
from environment import InstallError
from network import Network
from progress import say
from server import ServeError, Server
from work import Scene

from mmsup.supervisor.chaos.analysis.timeline import Story, story_of
from mmsup.supervisor.chaos.clients.http_client import Door
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import Fault, Role, chosen
from mmsup.supervisor.chaos.runner import Course
from mmsup.supervisor.chaos.runner_runs import against
from mmsup.supervisor.chaos.server.target import Target

LIMIT_S = 5.0
"""For a run, where a server can be told."""
CAP_BYTES = 4 << 30
"""For a whole server: what no cap inside it stops, the kernel stops here."""
GROUPS = Path("/sys/fs/cgroup/memory")
SCENE = Scene("chaos", "harmful", (-1,), (), models=2, limit_s=LIMIT_S)
HEALTHY, FAULTY = SCENE.names
PATIENCE_S = 15.0
"""A request that has no answer by then has failed."""
TAIL_S = 3.0
"""How long clients go on after the last fault."""
TROUBLE = (ServeError, InstallError, OSError, RuntimeError)
"""Why a server could not be measured."""
IMPOSSIBLE = "a memory control group (cgroup v1, as root) is needed: some servers have no cap of their own"
AWAY_S = 20.0
"""A model that does not answer for so long is away for good."""


@dataclass(frozen=True)
class Plan:
    """What every server goes through."""

    seed: int
    before_s: float
    """Without faults."""
    season_s: float
    """In which they begin, without the time that a model was away."""
    every_s: tuple[float, float]
    rate: float
    faults: tuple[Fault, ...]


def faults_of(names: Sequence[str]) -> tuple[Fault, ...]:
    """Faults of chaos's, as they are done to the model of the benchmarks: it takes memory until it is ended."""
    found = []
    for fault in chosen(",".join(names)):
        amount = float(2 * CAP_BYTES >> 20) if fault.mode == "allocate" else fault.amount
        found.append(replace(fault, role=fault.role and Role.CRASHY, needs="", amount=amount))
    return tuple(found)


def undergo(peer: Peer, environment: Path, mlp: Network, plan: Plan, history_file: Path | None = None) -> Story:
    """One server, from its start to its end. One of `TROUBLE`, or a group of them, if it cannot be started, at first
    or again."""
    history = History(history_file)
    gc.disable()  # a pause of ours would be told as one of the server's
    try:
        with group() as before, Server(peer, SCENE, environment, mlp, before) as server:
            server.wait_until_right()
            asyncio.run(_undergo(peer, server, plan, history))
    finally:
        gc.enable()
        history.close()
    return story_of(history.records)


async def _undergo(peer: Peer, server: Server, plan: Plan, history: History) -> None:
    strays: list[int] = []
    course = Course(
        plan.seed, plan.before_s + plan.season_s + TAIL_S, plan.every_s, plan.rate, plan.faults, {},
        before_s=plan.before_s, tail_s=TAIL_S, patience_s=PATIENCE_S, waits=True,
    )  # fmt: skip
    target = Target(
        Door("127.0.0.1", server.port, strays.append),
        {HEALTHY: Role.HEALTHY, FAULTY: Role.CRASHY},
        title=peer.name,
        tender=Caretaker(server, history, AWAY_S),
    )
    await against(target, strays, course, Dialect(peer, SCENE), history, lambda text: say(f"  {text}"))


def not_measured(error: BaseException) -> str:
    """The first reason."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"not measured: {error}"


@contextlib.contextmanager
def group() -> Iterator[list[str]]:
    """A memory control group (v1, as root) for one server: the words before its command that put it there."""
    folder = Path(tempfile.mkdtemp(prefix="mmsup_bench_", dir=GROUPS))
    try:
        (folder / "memory.limit_in_bytes").write_text(str(CAP_BYTES))
        yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        _remove(folder)


def is_possible() -> bool:
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
