"""Frozen descriptions of tensors and model versions that one process passes to another.

Made from the configuration (supervisor/repository), never modified: a change is a new spec and a new worker process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

INLINE_LIMIT_BYTES: Final = 4096
"""Tensors up to this size travel in the message. Measured: at 8 KiB a slot in shared memory is already cheaper."""
INLINE_TENSORS: Final = 64
"""Most tensors in one message; a request has no more."""
PRIORITY_LEVELS: Final = 100
"""Priorities of a model whose configuration gives no number."""
WARM_UP_FOLDER: Final = "warmup"
"""In a model's folder: files of `model_warmup`."""
WARM_UP_STRINGS_BYTES: Final = 64 << 20
"""The longest file of strings there that is read; that of any other datatype has the size that its shape says."""
INITIAL_STATE_FOLDER: Final = "initial_state"
"""In a model's folder: files of the states with which sequences begin."""
LABELS_LIMIT_BYTES: Final = 4 << 20
"""The longest file of labels (`label_filename`) that is read."""
TRITON_PYTHON: Final = "triton-python"
"""Interface of a class `TritonPythonModel`."""
MLSERVER: Final = "mlserver"
"""Interface of a class `MLModel` of MLServer."""
GROUP_KEYS: Final = {
    "python": "python",
    "env": "env",
    "device": "device",
    "instances": "instances",
    "memory": "memory_bytes",
    "recycle_memory": "recycle_memory_bytes",
    "gpu_memory": "gpu_memory_bytes",
}
"""Keys of a model that belong to its process, with the fields of ModelSpec that they set: the same for all models of a
co-location group."""


ENSEMBLE: Final = "ensemble"
"""The engine of such a model, its platform and its backend in Triton's words. It has no worker."""


def is_inline(size: int, inline_count: int) -> bool:
    """Whether an output of `size` bytes travels in the message, after `inline_count` others that do."""
    return size <= INLINE_LIMIT_BYTES and inline_count < INLINE_TENSORS


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One declared input or output. `shape` excludes the batch axis if the model batches; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Batching:
    """Dynamic batching of a model; only with a batch axis (`max_batch_size` above 0)."""

    max_rows: int = 0
    """Most rows of one batch; 0: `max_batch_size`."""
    delay_s: float = 0.0
    """How long the oldest request may wait for others that are likely to come; 0: never."""
    preferred: tuple[int, ...] = ()
    """Batch sizes that start without waiting for more requests, ascending."""
    objective_s: float = 0.0
    """Target for the p99 of queue and execution time together, for which sizes and delays are chosen. 0: none."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Limits on waiting requests of one priority, in each worker's queue."""

    level: int = 0
    """The priority; 0: each that has no policy of its own."""
    max_queue: int = 0
    """Most waiting requests; 0: as many as the model's `max_queue` admits."""
    timeout_s: float = 0.0
    """How long a request may wait before its execution starts; 0: to its deadline."""
    delays: bool = False
    """A request past the timeout continues to wait, behind all others, instead of being answered."""


@dataclass(frozen=True, slots=True)
class SequenceControl:
    """An input by which the server tells the model where in its sequence a request is.

    `kind`: `start`, `end`, `ready` (1 in rows that hold a request) or `id`. `no` and `yes` are its values; an `id` has
    neither."""

    input: str
    kind: str
    datatype: str
    no: float = 0.0
    yes: float = 1.0


@dataclass(frozen=True, slots=True)
class SequenceState:
    """State that the server keeps for each sequence: an output of one request is an input of the next one."""

    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]
    """Without the batch axis. -1 is any size; the first state has `initial_shape`."""
    initial_shape: tuple[int, ...] = ()
    initial_file: str = ""
    """In the folder INITIAL_STATE_FOLDER of the model. Empty: zeros, or empty strings."""


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests of a model belong to sequences, and all of one sequence run in one worker, in order."""

    strategy: str = "direct"
    """`direct`: each sequence has a row of the batch. `oldest`: batches are made of the oldest requests."""
    slots: int = 0
    """Sequences that one worker has at a time; 0: with `direct` one for each row, with `oldest` 1024."""
    idle_s: float = 1.0
    """A sequence without a request for so long is over, and its slot is free."""
    delay_s: float = 0.0
    """How long a request may wait for those of other sequences."""
    utilization: float = 0.0
    """`direct`: part of the slots whose requests start a batch before that."""
    preferred: tuple[int, ...] = ()
    """`oldest`: batch sizes that start before that, ascending."""
    controls: tuple[SequenceControl, ...] = ()
    states: tuple[SequenceState, ...] = ()

    def hidden_inputs(self) -> frozenset[str]:
        """Names of inputs that the server fills, and no client sees."""
        return frozenset([*(each.input for each in self.controls), *(each.input for each in self.states)])

    def hidden_outputs(self) -> frozenset[str]:
        return frozenset(each.output for each in self.states)


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble, which runs as soon as all tensors that its `input_map` names are there: inputs of the
    ensemble, or outputs of other steps. Both maps are from the model's own tensor to the ensemble's."""

    model: str
    version: str = ""
    """Empty: the default one."""
    input_map: dict[str, str] = field(default_factory=dict[str, str])
    output_map: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that a worker needs to serve one version of a model, and a gateway to describe it.

    Empty `inputs` or `outputs`: read from the model file and reported by the worker when it is ready.
    `device` is `cpu`, `cuda`, `cuda:N` or a GPU's UUID. Sizes in bytes, durations in seconds.
    """

    name: str
    version: str
    directory: str
    """The version's directory, absolute."""
    artefact: str
    """The file in `directory` that the engine loads."""
    engine: str
    """`ort`, `pytorch` or `custom`."""
    platform: str
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict[str, str])
    device: str = "cpu"
    instances: int = 1
    memory_bytes: int | None = None
    recycle_memory_bytes: int | None = None
    """A worker that uses more is replaced once its replacement is ready. None: never."""
    gpu_memory_bytes: int | None = None
    group: str = ""
    """Co-location group: models of one group share a worker process. Empty: a process of its own."""
    python: str = ""
    """Python interpreter of the worker; empty: the server's own."""
    start: str = "zygote"
    """`zygote`: forked by a process that has imported its engine, where there is one. `exec`: never."""
    preload: str = ""
    """What that process has imported, one of ENGINE_SETS (messages/zygote_control.py); empty: as its engine, or its
    class the last time, needs it."""
    imports: str = ""
    """What its class seems to import, one of ENGINE_SETS or empty."""
    interface: str = ""
    """How the class of a Python model is called: TRITON_PYTHON or MLSERVER; empty: as the class `Model`."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    deadline_s: float = 60.0
    hang_limit_s: float = 5.0
    load_timeout_s: float = 300.0
    max_queue: int = 512
    max_queue_bytes: int = 1 << 30
    batching: Batching = Batching()
    priority: int = 0
    """Priority of requests that name none: 1 is the highest, 0 the middle one."""
    priority_levels: int = PRIORITY_LEVELS
    queue_policies: tuple[QueuePolicy, ...] = ()
    sequences: SequenceBatching | None = None
    """None: its requests are independent of each other."""
    load: str = ""
    """`start`, or `on-demand`: when it is first loaded. Empty: as the control mode of the server says."""
    ttl_s: float | None = None
    """A worker without a request for so long is ended, and its model is asleep; 0: never. None: 5 minutes if it is
    loaded on demand, else never."""
    pin: bool = False
    """Never put to sleep."""
    evict: bool | None = None
    """Whether it may be put to sleep where another model needs its memory. None: if it is loaded on demand."""
    sleep: str = "auto"
    """Where it is while it is asleep. `host-memory`: its worker stays and has its weights there, if its engine can.
    `unload`: nowhere, its worker is ended. `auto`: the former where that gives memory back and it returns sooner."""
    cold_start_timeout_s: float = 0.0
    """How long a request may wait for it to be loaded from sleep; 0: as long as a load may take."""
    retry_on_crash: bool = False
    response_cache: bool = False
    """Gateways may answer a request with the result of an earlier one that was equal to it."""
    trusted: bool = False
    decoupled: bool = False
    """It answers a request any number of times. A class whose `infer` is a generator does so without being asked."""
    steps: tuple[EnsembleStep, ...] = ()
    """Of an ensemble, which has no worker; empty for every other model."""
    config: dict[str, Any] = field(default_factory=dict[str, Any])  # ModelConfig as JSON, passed through unread
    """Content of `config.pbtxt`, for `/config`; completed by the gateway."""

    def is_on_demand(self, control_mode: str) -> bool:
        """Whether the model is asleep until somebody asks for it. One that is pinned is not, unless it says else; nor
        an ensemble, whose steps may be."""
        if self.steps:
            return False
        return self.load == "on-demand" or (not self.load and not self.pin and control_mode == "on-demand")

    def is_evictable(self, control_mode: str) -> bool:
        """Whether it may be put to sleep where another model needs its memory."""
        return not self.pin and (self.is_on_demand(control_mode) if self.evict is None else self.evict)

    def effective_priority(self, priority: int) -> int:
        """The priority that applies to a request with this one; one that does not exist counts as none."""
        if 0 < priority <= self.priority_levels:
            return priority
        return self.priority or (self.priority_levels + 1) // 2


@dataclass(frozen=True, slots=True)
class Metadata:
    """A model's interface as its ready worker reports it: the configuration, completed from the model file."""

    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Names of the classes, by output, where the model file tells them."""
    decoupled: bool = False
    """A request is answered any number of times."""
    runs_side_by_side: bool = False
    """Its requests are open side by side in one worker, which may rest while all of them wait for something."""
    dynamic_batching: bool = False
    """The configuration that its own code has completed asks for it."""


def startable(steps: Sequence[EnsembleStep], started: Iterable[int], known: Iterable[str]) -> list[int]:
    """The steps that can start now, by place, given those that have and the tensors that are there."""
    begun, there = set(started), set(known)
    return [at for at, step in enumerate(steps) if at not in begun and there.issuperset(step.input_map.values())]


def needed_steps(steps: Sequence[EnsembleStep], wanted: Iterable[str]) -> set[int]:
    """The steps without which these tensors are not made."""
    todo, needed = list(wanted), set[int]()
    makers = {tensor: at for at, step in enumerate(steps) for tensor in step.output_map.values()}
    while todo:
        at = makers.get(todo.pop())
        if at is not None and at not in needed:
            needed.add(at)
            todo += steps[at].input_map.values()
    return needed
