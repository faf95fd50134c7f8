"""The faults that chaos draws from: how each is done, to whom, and what must then be seen. A table; nothing acts here.

`row` is the row of the fault table (tests/faults/rows.py). `answers` are the outcomes that the request which does the
harm may have, `cause` the words by which the journal may name the death; no cause: nobody may die.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

RIGHT: Final = "right"
"""The outcome of a request that was answered with its own bytes."""
QUARANTINED: Final = "request_quarantined"
"""What a request is told that has ended its workers."""
SERVICE_MANAGER: Final = "manager"


class ModelRole(enum.StrEnum):
    """What a model is there for."""

    HEALTHY = "healthy"
    CRASHY = "crashy"
    LEAKY = "leaky"
    HANGING = "hanging"
    CHANGING = "changing"


class FaultMethod(enum.StrEnum):
    """How a fault is brought about."""

    REQUEST = "request"
    """The model does it, because its input says so: needs nothing but HTTP."""
    WORKER = "worker"
    """To the model's process, from outside: needs the same machine."""
    SERVER_PROCESS = "house"
    """To a process of the server itself: needs its control socket."""
    CONTROL = "control"
    """By loading and unloading: needs the model's files."""
    CLIENT = "client"
    """By a client that behaves badly: needs nothing but HTTP."""


@dataclass(frozen=True, slots=True)
class FaultClass:
    """One class of fault."""

    name: str
    row: str
    method: FaultMethod
    role: ModelRole | None = None
    """Models that it is done to; None: no model."""
    mode: str = ""
    amount: float = 0.0
    allowed_outcomes: frozenset[str] = frozenset({RIGHT})
    causes: tuple[str, ...] = ()
    must_kill: bool = True
    """With a cause: whether a death must follow, or may."""
    duration_s: float = math.inf
    """It ends by itself after so long, whether or not anybody has done something about it."""
    cooldown_s: float = 3.0
    """How long its victim is then left alone, seconds."""
    requires: str = ""
    """A capability beyond what `by` says: `caps`, `freezer`, or `manager`: that the server is started by us."""
    max_deaths: int = 1
    """With a cause: how many it may cost."""
    is_default: bool = True
    """Whether it is done unless others are named."""

    @property
    def is_poison(self) -> bool:
        """Whether its client sends the same again until it is refused."""
        return QUARANTINED in self.allowed_outcomes


def _crash(name: str, row: str, cause: str, mode: str = "", amount: float = 0.0) -> FaultClass:
    answers = frozenset({"worker_sigbus" if name == "bus" else "worker_crashed"})
    return FaultClass(name, row, FaultMethod.REQUEST, ModelRole.CRASHY, mode or name, amount, answers, (cause,))


def _hang(name: str) -> FaultClass:
    return FaultClass(
        name,
        "F10",
        FaultMethod.REQUEST,
        ModelRole.HANGING,
        name,
        allowed_outcomes=frozenset({"worker_hung"}),
        causes=("hung",),
        cooldown_s=6.0,
    )


_OOM_CODES: Final = frozenset({"worker_oom"})
_KILLED_CAUSES: Final = ("signal SIGKILL",)

FAULTS: Final = (
    _crash("segv", "F3", "signal SIGSEGV"),
    _crash("abort", "F3", "signal SIGABRT"),
    _crash("fpe", "F3", "signal SIGFPE"),
    _crash("bus", "F3", "signal SIGBUS"),
    _crash("exit", "F3", "exit 3", amount=3),
    _crash("exit0", "F3", "exit 0", "exit"),
    _crash("sysexit", "F3", "exit 4", amount=4),
    _crash("kill", "F2", "signal SIGKILL"),
    FaultClass(
        "poison", "F13", FaultMethod.REQUEST, ModelRole.CRASHY, "abort", allowed_outcomes=frozenset({"worker_crashed", QUARANTINED}),
        causes=("signal SIGABRT",), max_deaths=2,
    ),
    FaultClass("raise", "F4", FaultMethod.REQUEST, ModelRole.CRASHY, "raise", allowed_outcomes=frozenset({"inference_failed"}), cooldown_s=1.0),
    _hang("hang"),
    _hang("spin"),
    _hang("deadlock"),
    _hang("stop"),
    FaultClass("oom", "F15", FaultMethod.REQUEST, ModelRole.LEAKY, "allocate", 600, _OOM_CODES, ("oom",), cooldown_s=4.0, requires="caps"),
    FaultClass(
        "child_oom", "F16", FaultMethod.REQUEST, ModelRole.LEAKY, "child", 600, _OOM_CODES | {"inference_failed", "worker_crashed"},
        ("oom",), cooldown_s=4.0, requires="caps",
    ),
    FaultClass(
        "leak", "F14", FaultMethod.REQUEST, ModelRole.LEAKY, "leak", 40, _OOM_CODES | {RIGHT}, ("oom", "memory"), must_kill=False,
        cooldown_s=4.0, requires="caps",
    ),
    FaultClass("kill_idle", "F1", FaultMethod.WORKER, ModelRole.CRASHY, causes=_KILLED_CAUSES),
    FaultClass(
        "kill_busy", "F2", FaultMethod.WORKER, ModelRole.CRASHY, "sleep", 0.6, frozenset({"worker_crashed", RIGHT}), _KILLED_CAUSES
    ),
    FaultClass("stop_worker", "F10", FaultMethod.WORKER, ModelRole.HANGING, causes=("hung",), cooldown_s=7.0),
    FaultClass("freeze_worker", "F12", FaultMethod.WORKER, ModelRole.HANGING, causes=("hung",), duration_s=4.0, cooldown_s=9.0, requires="freezer"),
    FaultClass("kill_brain", "F25", FaultMethod.SERVER_PROCESS),
    FaultClass("stop_brain", "F28", FaultMethod.SERVER_PROCESS, cooldown_s=10.0),
    FaultClass("kill_keeper", "F25b", FaultMethod.SERVER_PROCESS, cooldown_s=12.0, requires=SERVICE_MANAGER, is_default=False),
    FaultClass("kill_gateway", "F26", FaultMethod.SERVER_PROCESS, cooldown_s=4.0),
    FaultClass("stop_gateway", "F27", FaultMethod.SERVER_PROCESS, cooldown_s=6.0),
    FaultClass("reload", "F54", FaultMethod.CONTROL, ModelRole.CHANGING, cooldown_s=2.0),
    FaultClass("unload_load", "F54", FaultMethod.CONTROL, ModelRole.CHANGING, cooldown_s=3.0),
    FaultClass("load_raises", "F6", FaultMethod.CONTROL, ModelRole.CHANGING, "raise", cooldown_s=3.0),
    FaultClass("load_crashes", "F6", FaultMethod.CONTROL, ModelRole.CHANGING, "segv", cooldown_s=3.0),
    FaultClass("load_hangs", "F7", FaultMethod.CONTROL, ModelRole.CHANGING, "hang", cooldown_s=6.0),
    FaultClass("leave", "F50", FaultMethod.CLIENT, ModelRole.CRASHY, "sleep", 0.3, cooldown_s=1.0),
    FaultClass("slow_client", "F45", FaultMethod.CLIENT, cooldown_s=1.0),
    FaultClass("garbage", "F46", FaultMethod.CLIENT, cooldown_s=1.0),
)  # fmt: skip
FAULT_BY_NAME: Final = {each.name: each for each in FAULTS}

FAILURE_CODES: Final = frozenset({
    "worker_crashed", "worker_oom", "worker_sigbus", "worker_hung", "model_restarting", "model_loading",
})  # fmt: skip
"""What other requests to a model may be told while it is dying and coming back."""
UNLOADED_CODES: Final = frozenset({"unknown_model", "model_loading", "unavailable"})
"""What requests to a model may be told that is unloaded."""
KEEPER_FAULTS: Final = frozenset({"kill_keeper"})
"""Faults that end every process of the server."""
RESETTING_FAULTS: Final = frozenset({"kill_gateway", "stop_gateway"}) | KEEPER_FAULTS
"""Faults that break connections, of every client."""


def select_faults(names: str) -> tuple[FaultClass, ...]:
    """The faults of a list with commas; the usual ones if it is empty. ValueError names what is no fault."""
    wanted = [each.strip() for each in names.split(",") if each.strip()]
    unknown = [each for each in wanted if each not in FAULT_BY_NAME]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no fault; there are {', '.join(FAULT_BY_NAME)}")
    return (
        tuple(FAULT_BY_NAME[each] for each in wanted) if wanted else tuple(each for each in FAULTS if each.is_default)
    )


def possible_faults(faults: Iterable[FaultClass], capabilities: frozenset[str]) -> tuple[FaultClass, ...]:
    """Those for which there are the means: values of By, and capabilities."""
    return tuple(
        each for each in faults if each.method in capabilities and (not each.requires or each.requires in capabilities)
    )
