"""The table of fault classes: how each is injected, into what kind of model, and what must follow. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

RIGHT: Final = "right"
"""Outcome of a request that was answered with its own bytes."""
QUARANTINED: Final = "request_quarantined"
"""Error code of a request that is refused because it killed its workers."""
SERVICE_MANAGER: Final = "manager"
"""Capability: the server under test is started by this package, which can restart it."""
GRPCIO_FRONT: Final = "grpcio"
"""Capability: a process of the server takes calls of gRPC, and the clients send some."""
GRPC: Final = "grpc"
"""Of requests over gRPC, in the history; HTTP has no name there."""


class ModelRole(enum.StrEnum):
    """Which faults a model of the run gets."""

    HEALTHY = "healthy"
    CRASHY = "crashy"
    LEAKY = "leaky"
    HANGING = "hanging"
    CHANGING = "changing"
    GROUPED = "grouped"
    """They share one process."""
    STREAMING = "streaming"
    """Each answers a request in parts."""
    ON_DEMAND = "on_demand"
    """Each is loaded when it is asked; the memory budget does not hold all of them."""
    MOVABLE = "movable"
    """It sleeps in host memory."""
    SEQUENCED = "sequenced"
    """Its requests belong to sequences, and it counts those of each."""
    CALLING = "calling"
    """It calls its partner of the role CALLED when a request says so; no fault hits it."""
    ENSEMBLE = "ensemble"
    """Its last step is its partner of the role CALLED; the one before is that of the role CALLING."""
    CALLED = "called"


class FaultMethod(enum.StrEnum):
    """How a fault is injected, and what access that needs."""

    REQUEST = "request"
    """The input tells the fault model to fail: needs HTTP only."""
    WORKER = "worker"
    """A signal or the freezer, on the worker process: needs the same machine."""
    SERVER_PROCESS = "server"
    """A signal to keeper, controller or gateway: needs the control socket."""
    CONTROL = "control"
    """Loading and unloading: needs the model's files."""
    CLIENT = "client"
    """A client that misbehaves: needs HTTP only."""


@dataclass(frozen=True, slots=True)
class FaultClass:
    name: str
    row: str
    """Its row in the fault table (tests/faults/rows.py)."""
    method: FaultMethod
    role: ModelRole | None = None
    """Role of the models it is injected into; None: it has no model as victim."""
    mode: str = ""
    amount: float = 0.0
    """The fault model's inputs `mode` and `amount`."""
    allowed_outcomes: frozenset[str] = frozenset({RIGHT})
    """Outcomes or error codes that the request which triggers the fault may get."""
    causes: tuple[str, ...] = ()
    """Causes that the event log may give for the worker's death; empty: no worker may die."""
    shared_causes: tuple[str, ...] = ()
    """The same for the models that share the process of its victim."""
    must_kill: bool = True
    """With causes: whether a death must follow, or only may."""
    duration_s: float = math.inf
    """The fault ends by itself after so long, even if the server did not react."""
    cooldown_s: float = 3.0
    """The victim gets no other fault for so long."""
    requires: str = ""
    """A capability beyond those of the method: `caps`, `freezer` or `manager`."""
    max_deaths: int = 1
    spares_requests: bool = False
    """No request may fail of it, although a worker dies: they wait for the next one."""
    through: ModelRole | None = None
    """The victim's partner of this role is asked, and passes the request on; its error must name the victim."""
    is_default: bool = True


LATE_CODE: Final = "deadline_exceeded"
"""Of requests to a model that hangs, whose deadline is short."""


def _crash(name: str, row: str, cause: str, mode: str = "", amount: float = 0.0) -> FaultClass:
    codes = frozenset({"worker_sigbus" if name == "bus" else "worker_crashed"})
    return FaultClass(name, row, FaultMethod.REQUEST, ModelRole.CRASHY, mode or name, amount, codes, (cause,))


def _hang(name: str) -> FaultClass:
    # A loop computes on to the deadline, which may answer its caller first.
    codes = frozenset({"worker_hung", LATE_CODE} if name == "spin" else {"worker_hung"})
    return FaultClass(
        name, "F10", FaultMethod.REQUEST, ModelRole.HANGING, name, 0.0, codes, _HUNG_CAUSES, cooldown_s=6.0
    )


def _leak(name: str, row: str, mode: str, amount: float, codes: Iterable[str] = ()) -> FaultClass:
    return FaultClass(
        name, row, FaultMethod.REQUEST, ModelRole.LEAKY, mode, amount, frozenset({"worker_oom", *codes}), ("oom",),
        cooldown_s=4.0, requires="caps",
    )  # fmt: skip


def _load(name: str, row: str, mode: str = "", cooldown_s: float = 3.0) -> FaultClass:
    return FaultClass(name, row, FaultMethod.CONTROL, ModelRole.CHANGING, mode, cooldown_s=cooldown_s)


def _group(name: str, mode: str, code: str, cause: str, amount: float = 0.0, requires: str = "") -> FaultClass:
    return FaultClass(
        name, "F64", FaultMethod.REQUEST, ModelRole.GROUPED, mode, amount, frozenset({code}), (cause,), _SHARED_CAUSES,
        cooldown_s=6.0, requires=requires or SERVICE_MANAGER,
    )  # fmt: skip


def _move(name: str, mode: str, cause: str, amount: float = 0.0) -> FaultClass:
    return FaultClass(
        name, "F66", FaultMethod.WORKER, ModelRole.MOVABLE, mode, amount, causes=(cause,), cooldown_s=6.0,
        requires=SERVICE_MANAGER, spares_requests=True,
    )  # fmt: skip


def _called(name: str, row: str, through: ModelRole, mode: str, code: str) -> FaultClass:
    """The victim is killed, or crashes, while it runs what another model has been asked for."""
    is_kill = name.startswith("kill")
    codes = frozenset({code, RIGHT} if is_kill else {code})
    return FaultClass(
        name, row, FaultMethod.WORKER if is_kill else FaultMethod.REQUEST, ModelRole.CALLED, mode,
        0.6 if is_kill else 0.0, codes, _KILLED_CAUSES if is_kill else ("signal SIGSEGV",),
        requires=SERVICE_MANAGER, through=through,
    )  # fmt: skip


MOVE_S: Final = 0.5
"""How long a move takes in which its process is killed."""
_SHARED_CAUSES: Final = ("shared",)
_KILLED_CAUSES: Final = ("signal SIGKILL",)
_HUNG_CAUSES: Final = ("hung",)

FAULTS: Final = (
    _crash("segv", "F3", "signal SIGSEGV"),
    _crash("abort", "F3", "signal SIGABRT"),
    _crash("fpe", "F3", "signal SIGFPE"),
    _crash("bus", "F3", "signal SIGBUS"),
    _crash("exit", "F3", "exit 3", amount=3),
    _crash("exit0", "F3", "exit 0", "exit"),
    _crash("sysexit", "F3", "exit 4", amount=4),
    _crash("kill", "F2", "signal SIGKILL"),
    replace(_crash("calling", "F75", "signal SIGKILL", amount=0.1), requires=SERVICE_MANAGER),
    FaultClass(
        "poison", "F13", FaultMethod.REQUEST, ModelRole.CRASHY, "abort", 0.0,
        frozenset({"worker_crashed", QUARANTINED}), ("signal SIGABRT",), max_deaths=2,
    ),
    FaultClass(
        "raise", "F4", FaultMethod.REQUEST, ModelRole.CRASHY, "raise", 0.0,
        frozenset({"inference_failed"}), cooldown_s=1.0,
    ),
    _hang("hang"),
    _hang("spin"),
    _hang("deadlock"),
    _hang("stop"),
    _leak("oom", "F15", "allocate", 600),
    _leak("child_oom", "F16", "child", 600, ("inference_failed", "worker_crashed")),
    replace(_leak("leak", "F14", "leak", 40, (RIGHT,)), causes=("oom", "memory"), must_kill=False),
    FaultClass("kill_idle", "F1", FaultMethod.WORKER, ModelRole.CRASHY, causes=_KILLED_CAUSES),
    FaultClass(
        "kill_busy", "F2", FaultMethod.WORKER, ModelRole.CRASHY, "sleep", 0.6,
        frozenset({"worker_crashed", RIGHT}), _KILLED_CAUSES,
    ),
    FaultClass("stop_worker", "F10", FaultMethod.WORKER, ModelRole.HANGING, causes=_HUNG_CAUSES, cooldown_s=7.0),
    FaultClass(
        "freeze_worker", "F12", FaultMethod.WORKER, ModelRole.HANGING, causes=_HUNG_CAUSES, duration_s=4.0,
        cooldown_s=9.0, requires="freezer",
    ),
    FaultClass("kill_brain", "F25", FaultMethod.SERVER_PROCESS),
    FaultClass("stop_brain", "F28", FaultMethod.SERVER_PROCESS, cooldown_s=10.0),
    FaultClass(
        "kill_keeper", "F25b", FaultMethod.SERVER_PROCESS, cooldown_s=12.0, requires=SERVICE_MANAGER, is_default=False
    ),
    FaultClass("kill_gateway", "F26", FaultMethod.SERVER_PROCESS, cooldown_s=4.0),
    FaultClass("stop_gateway", "F27", FaultMethod.SERVER_PROCESS, cooldown_s=6.0),
    FaultClass("kill_zygote", "F55", FaultMethod.SERVER_PROCESS),
    FaultClass("stop_zygote", "F56", FaultMethod.SERVER_PROCESS, cooldown_s=6.0),
    FaultClass(
        "kill_front", "F81", FaultMethod.SERVER_PROCESS, None, "sleep", 0.6, cooldown_s=6.0, requires=GRPCIO_FRONT
    ),
    _load("reload", "F54", cooldown_s=2.0),
    _load("unload_load", "F54"),
    replace(_load("put_to_sleep", "F61"), requires=FaultMethod.WORKER.value),
    _load("load_raises", "F6", "raise"),
    _load("load_crashes", "F6", "segv"),
    _load("load_hangs", "F7", "hang", cooldown_s=6.0),
    _group("group_segv", "segv", "worker_crashed", "signal SIGSEGV"),
    _group("group_exit", "exit", "worker_crashed", "exit 3", 3),
    _group("group_hang", "hang", "worker_hung", "hung"),
    _group("group_oom", "allocate", "worker_oom", "oom", 600, "caps"),
    FaultClass(
        "group_kill", "F64", FaultMethod.WORKER, ModelRole.GROUPED, causes=(*_KILLED_CAUSES, *_SHARED_CAUSES),
        shared_causes=(*_KILLED_CAUSES, *_SHARED_CAUSES), cooldown_s=6.0, requires=SERVICE_MANAGER,
    ),
    FaultClass(
        "group_load", "F64", FaultMethod.CONTROL, ModelRole.GROUPED, "segv",
        causes=("signal SIGSEGV", *_SHARED_CAUSES), shared_causes=_SHARED_CAUSES, cooldown_s=10.0,
        requires=SERVICE_MANAGER,
    ),
    FaultClass(
        "evict", "F65", FaultMethod.CONTROL, ModelRole.ON_DEMAND, duration_s=3.0, cooldown_s=6.0,
        requires=SERVICE_MANAGER,
    ),
    FaultClass(
        "race_moves", "F66", FaultMethod.WORKER, ModelRole.MOVABLE, duration_s=2.0, requires=SERVICE_MANAGER,
        spares_requests=True,
    ),
    _move("offload_raises", "at_offload_raise", "move failed"),
    _move("offload_hangs", "at_offload_hang", "hung"),
    _move("restore_raises", "at_restore_raise", "move failed"),
    _move("restore_hangs", "at_restore_hang", "hung"),
    _move("kill_offloading", "at_offload_sleep", *_KILLED_CAUSES, MOVE_S),
    _move("kill_offloaded", "ok", *_KILLED_CAUSES),
    _move("kill_restoring", "at_restore_sleep", *_KILLED_CAUSES, MOVE_S),
    FaultClass(
        "stream_crash", "F67", FaultMethod.REQUEST, ModelRole.STREAMING, "segv", 0.0,
        frozenset({"worker_crashed"}), ("signal SIGSEGV",),
    ),
    FaultClass(
        "stream_hang", "F67", FaultMethod.REQUEST, ModelRole.STREAMING, "hang", 0.0,
        frozenset({"worker_hung"}), _HUNG_CAUSES, cooldown_s=6.0,
    ),
    FaultClass(
        "stream_raise", "F67", FaultMethod.REQUEST, ModelRole.STREAMING, "raise", 0.0,
        frozenset({"inference_failed"}), cooldown_s=1.0,
    ),
    FaultClass(
        "stream_kill", "F67", FaultMethod.WORKER, ModelRole.STREAMING, causes=_KILLED_CAUSES, requires=SERVICE_MANAGER
    ),
    FaultClass("stream_leave", "F70", FaultMethod.CLIENT, ModelRole.STREAMING, "sleep", 0.3, cooldown_s=1.0),
    FaultClass("kill_sequenced", "F71", FaultMethod.WORKER, ModelRole.SEQUENCED, causes=_KILLED_CAUSES),
    FaultClass(
        "crash_sequenced", "F71", FaultMethod.REQUEST, ModelRole.SEQUENCED, "segv", 0.0,
        frozenset({"worker_crashed", "sequence_lost"}), ("signal SIGSEGV",), requires=SERVICE_MANAGER,
    ),
    _called("kill_called", "F74", ModelRole.CALLING, "call_sleep", "inference_failed"),
    _called("crash_called", "F74", ModelRole.CALLING, "call_segv", "inference_failed"),
    _called("kill_step", "F77", ModelRole.ENSEMBLE, "sleep", "worker_crashed"),
    _called("crash_step", "F77", ModelRole.ENSEMBLE, "segv", "worker_crashed"),
    FaultClass("leave", "F50", FaultMethod.CLIENT, ModelRole.CRASHY, "sleep", 0.3, cooldown_s=1.0),
    FaultClass("slow_client", "F45", FaultMethod.CLIENT, cooldown_s=1.0),
    FaultClass("garbage", "F46", FaultMethod.CLIENT, cooldown_s=1.0),
    FaultClass("cut_memory", "F44", FaultMethod.CLIENT, cooldown_s=1.0, requires=SERVICE_MANAGER),
)  # fmt: skip
FAULT_BY_NAME: Final = {each.name: each for each in FAULTS}

FAILURE_CODES: Final = frozenset({
    "worker_crashed", "worker_oom", "worker_sigbus", "worker_hung", "model_restarting", "model_loading",
})  # fmt: skip
"""Error codes that other requests may get while a worker dies and its successor starts."""
SEQUENCE_LOST: Final = "sequence_lost"
"""Error code of a request to go on with a sequence whose state a worker took with it when it died."""
UNLOADED_CODES: Final = frozenset({"unknown_model", "model_loading", "unavailable"})
"""Error codes that requests to an unloaded model may get."""
SHARED_CODES: Final = frozenset({"model_restarting"})
"""Error codes that requests to a model may get whose process another model has ended."""
NO_ROOM_CODES: Final = frozenset({"evicted", "insufficient_memory"})
"""Error codes that requests to a model on demand may get while nothing that may go makes room for it."""
KEEPER_FAULTS: Final = frozenset({"kill_keeper"})
"""Faults that end every process of the server."""
RESETTING_FAULTS: Final = frozenset({"kill_gateway", "stop_gateway"}) | KEEPER_FAULTS
"""Faults that break connections of any client."""
FRONT_FAULTS: Final = frozenset({"kill_front"})
"""Faults that break connections of clients of gRPC alone."""


def partner(model: str, role: ModelRole) -> str:
    """The model of that role which belongs to this one: both have the same number."""
    return f"{role}_{model.rpartition('_')[2]}"


def asked_model(fault: FaultClass, victim: str) -> str:
    """The model that gets the request which triggers the fault."""
    return partner(victim, fault.through) if fault.through else victim


def hit_together(victim: str, models: Mapping[str, ModelRole]) -> list[str]:
    """The victim, with the models that share its process, or memory that does not hold all of them, or whose step it
    is."""
    role = models.get(victim)
    if role == ModelRole.CALLED:
        return [victim, *({partner(victim, ModelRole.ENSEMBLE)} & models.keys())]
    if role not in (ModelRole.GROUPED, ModelRole.ON_DEMAND):
        return [victim]
    return [name for name, each in models.items() if each == role]


def breaking_faults(via: str) -> frozenset[str]:
    """Faults that break the connection of a request; `via` as in the history."""
    return RESETTING_FAULTS | FRONT_FAULTS if via == GRPC else RESETTING_FAULTS


def is_poison(fault: FaultClass) -> bool:
    """Whether its client repeats the same request until it is refused."""
    return QUARANTINED in fault.allowed_outcomes


def select_faults(names: str) -> tuple[FaultClass, ...]:
    """The classes of a comma-separated list; the default ones if it is empty. ValueError names an unknown one."""
    wanted = [each.strip() for each in names.split(",") if each.strip()]
    unknown = [each for each in wanted if each not in FAULT_BY_NAME]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no fault; there are {', '.join(FAULT_BY_NAME)}")
    return (
        tuple(FAULT_BY_NAME[each] for each in wanted) if wanted else tuple(each for each in FAULTS if each.is_default)
    )


def possible_faults(faults: Iterable[FaultClass], capabilities: frozenset[str]) -> tuple[FaultClass, ...]:
    """Those that can be injected; `capabilities` are values of FaultMethod and of `FaultClass.requires`."""
    return tuple(
        each for each in faults if each.method in capabilities and (not each.requires or each.requires in capabilities)
    )
