"""Messages to and from a zygote: a process that has imported an engine, and of which the keeper has workers forked.

    controller ──ConfigureZygote──▶ zygote ──ZygoteReady──▶ controller      its control channel, msgpack
    keeper ──ForkWorker──▶ zygote                                           its fork channel, JSON
    zygote ──Forked or ForkRefused──▶ keeper, worker ──WorkerSetUp──▶ keeper      the fork's status channel, JSON

The status channel is one for each fork. The forked worker runs nothing of its own before the keeper has answered its
WorkerSetUp by GO: so a worker that the keeper does not know ends by EOF on that channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ENGINE_SETS: Final = ("numpy", "onnxruntime", "torch")
"""What a zygote has imported. numpy is in each of them; a class that imports several libraries has the last of them."""
GO: Final = b"go"
"""From the keeper to a forked worker: it is recorded, and may begin."""


@dataclass(frozen=True, slots=True)
class ConfigureZygote:
    """What to import; sent again by the next controller. Answered by ZygoteReady."""

    wire_version: int
    engine_set: str
    """One of ENGINE_SETS."""


@dataclass(frozen=True, slots=True)
class ZygoteReady:
    """Everything is imported; workers can be forked."""

    wire_version: int
    import_s: float


@dataclass(frozen=True, slots=True)
class ForkWorker:
    """Fork a worker that is as one after an exec.

    With descriptors: the status channel, the output, those of `inherited` in this order, and `groups` open
    `cgroup.procs` files."""

    keeper: int
    """Pid of the process that must be the worker's parent."""
    argv: tuple[str, ...]
    """The command of an exec, without the descriptors that are appended to it."""
    env: dict[str, str]
    """The complete environment."""
    cwd: str
    inherited: tuple[str, ...]
    groups: int
    oom_score_adj: int
    limit_mark: int
    """Soft limit of RLIMIT_RTTIME, by which what it starts is found (supervisor/linux/worker_marks.py); 0: as it is."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker was forked. With one descriptor: its pidfd."""

    pid: int


@dataclass(frozen=True, slots=True)
class ForkRefused:
    """No worker was forked, for this reason. The zygote exits: it forks none any more."""

    text: str


@dataclass(frozen=True, slots=True)
class WorkerSetUp:
    """The worker is as one after an exec, and waits for GO; or why that failed, and it exits."""

    error: str


TO_ZYGOTE: Final = (ConfigureZygote,)

FROM_ZYGOTE: Final = (ZygoteReady,)

FORK_STATUS: Final = (Forked, ForkRefused, WorkerSetUp)
