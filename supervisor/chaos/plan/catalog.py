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
MANAGER: Final = "manager"


class Role(enum.StrEnum):
    """What a model is there for."""

    HEALTHY = "healthy"
    CRASHY = "crashy"
    LEAKY = "leaky"
    HANGING = "hanging"
    CHANGING = "changing"


class By(enum.StrEnum):
    """How a fault is brought about."""

    REQUEST = "request"
    """The model does it, because its input says so: needs nothing but HTTP."""
    WORKER = "worker"
    """To the model's process, from outside: needs the same machine."""
    HOUSE = "house"
    """To a process of the server itself: needs its control socket."""
    CONTROL = "control"
    """By loading and unloading: needs the model's files."""
    CLIENT = "client"
    """By a client that behaves badly: needs nothing but HTTP."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One class of fault."""

    name: str
    row: str
    by: By
    role: Role | None = None
    """Models that it is done to; None: no model."""
    mode: str = ""
    amount: float = 0.0
    answers: frozenset[str] = frozenset({RIGHT})
    cause: tuple[str, ...] = ()
    is_deadly: bool = True
    """With a cause: whether a death must follow, or may."""
    lasts_s: float = math.inf
    """It ends by itself after so long, whether or not anybody has done something about it."""
    rest_s: float = 3.0
    """How long its victim is then left alone, seconds."""
    needs: str = ""
    """A capability beyond what `by` says: `caps`, `freezer`, or `manager`: that the server is started by us."""
    deaths: int = 1
    """With a cause: how many it may cost."""
    is_usual: bool = True
    """Whether it is done unless others are named."""

    @property
    def insists(self) -> bool:
        """Whether its client sends the same again until it is refused."""
        return QUARANTINED in self.answers


def _dies(name: str, row: str, cause: str, mode: str = "", amount: float = 0.0) -> Fault:
    answers = frozenset({"worker_sigbus" if name == "bus" else "worker_crashed"})
    return Fault(name, row, By.REQUEST, Role.CRASHY, mode or name, amount, answers, (cause,))


def _hangs(name: str) -> Fault:
    return Fault(
        name, "F10", By.REQUEST, Role.HANGING, name, answers=frozenset({"worker_hung"}), cause=("hung",), rest_s=6.0
    )


_OOM: Final = frozenset({"worker_oom"})
_KILLED: Final = ("signal SIGKILL",)

FAULTS: Final = (
    _dies("segv", "F3", "signal SIGSEGV"),
    _dies("abort", "F3", "signal SIGABRT"),
    _dies("fpe", "F3", "signal SIGFPE"),
    _dies("bus", "F3", "signal SIGBUS"),
    _dies("exit", "F3", "exit 3", amount=3),
    _dies("exit0", "F3", "exit 0", "exit"),
    _dies("sysexit", "F3", "exit 4", amount=4),
    _dies("kill", "F2", "signal SIGKILL"),
    Fault(
        "poison", "F13", By.REQUEST, Role.CRASHY, "abort", answers=frozenset({"worker_crashed", QUARANTINED}),
        cause=("signal SIGABRT",), deaths=2,
    ),
    Fault("raise", "F4", By.REQUEST, Role.CRASHY, "raise", answers=frozenset({"inference_failed"}), rest_s=1.0),
    _hangs("hang"),
    _hangs("spin"),
    _hangs("deadlock"),
    _hangs("stop"),
    Fault("oom", "F15", By.REQUEST, Role.LEAKY, "allocate", 600, _OOM, ("oom",), rest_s=4.0, needs="caps"),
    Fault(
        "child_oom", "F16", By.REQUEST, Role.LEAKY, "child", 600, _OOM | {"inference_failed", "worker_crashed"},
        ("oom",), rest_s=4.0, needs="caps",
    ),
    Fault(
        "leak", "F14", By.REQUEST, Role.LEAKY, "leak", 40, _OOM | {RIGHT}, ("oom", "memory"), is_deadly=False,
        rest_s=4.0, needs="caps",
    ),
    Fault("kill_idle", "F1", By.WORKER, Role.CRASHY, cause=_KILLED),
    Fault(
        "kill_busy", "F2", By.WORKER, Role.CRASHY, "sleep", 0.6, frozenset({"worker_crashed", RIGHT}), _KILLED
    ),
    Fault("stop_worker", "F10", By.WORKER, Role.HANGING, cause=("hung",), rest_s=7.0),
    Fault("freeze_worker", "F12", By.WORKER, Role.HANGING, cause=("hung",), lasts_s=4.0, rest_s=9.0, needs="freezer"),
    Fault("kill_brain", "F25", By.HOUSE),
    Fault("stop_brain", "F28", By.HOUSE, rest_s=10.0),
    Fault("kill_keeper", "F25b", By.HOUSE, rest_s=12.0, needs=MANAGER, is_usual=False),
    Fault("kill_gateway", "F26", By.HOUSE, rest_s=4.0),
    Fault("stop_gateway", "F27", By.HOUSE, rest_s=6.0),
    Fault("reload", "F54", By.CONTROL, Role.CHANGING, rest_s=2.0),
    Fault("unload_load", "F54", By.CONTROL, Role.CHANGING, rest_s=3.0),
    Fault("load_raises", "F6", By.CONTROL, Role.CHANGING, "raise", rest_s=3.0),
    Fault("load_crashes", "F6", By.CONTROL, Role.CHANGING, "segv", rest_s=3.0),
    Fault("load_hangs", "F7", By.CONTROL, Role.CHANGING, "hang", rest_s=6.0),
    Fault("leave", "F50", By.CLIENT, Role.CRASHY, "sleep", 0.3, rest_s=1.0),
    Fault("slow_client", "F45", By.CLIENT, rest_s=1.0),
    Fault("garbage", "F46", By.CLIENT, rest_s=1.0),
)  # fmt: skip
BY_NAME: Final = {each.name: each for each in FAULTS}

TROUBLE: Final = frozenset({
    "worker_crashed", "worker_oom", "worker_sigbus", "worker_hung", "model_restarting", "model_loading",
})  # fmt: skip
"""What other requests to a model may be told while it is dying and coming back."""
ABSENT: Final = frozenset({"unknown_model", "model_loading", "unavailable"})
"""What requests to a model may be told that is unloaded."""
KEEPER: Final = frozenset({"kill_keeper"})
"""Faults that end every process of the server."""
RESETTING: Final = frozenset({"kill_gateway", "stop_gateway"}) | KEEPER
"""Faults that break connections, of every client."""


def chosen(names: str) -> tuple[Fault, ...]:
    """The faults of a list with commas; the usual ones if it is empty. ValueError names what is no fault."""
    wanted = [each.strip() for each in names.split(",") if each.strip()]
    unknown = [each for each in wanted if each not in BY_NAME]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no fault; there are {', '.join(BY_NAME)}")
    return tuple(BY_NAME[each] for each in wanted) if wanted else tuple(each for each in FAULTS if each.is_usual)


def possible(faults: Iterable[Fault], means: frozenset[str]) -> tuple[Fault, ...]:
    """Those for which there are the means: values of By, and capabilities."""
    return tuple(each for each in faults if each.by in means and (not each.needs or each.needs in means))
