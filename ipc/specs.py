"""Frozen descriptions that one process hands to another: a tensor, a model version.

`supervisor/config/server_options.py` makes them, nobody changes them; a change is a new spec and a new process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

INLINE_LIMIT_BYTES: Final = 4096
"""Tensors up to this size travel in the message; measured: at 8 KiB a slot is already cheaper."""

INLINE_TENSORS: Final = 64
"""Tensors that travel in one message at most; a request has no more."""

PRIORITY_LEVELS: Final = 100
"""Classes of priority where a model's configuration counts none."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One declared input or output. `shape` is without the batch axis if the model batches; -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests of a model share its runs. Only where there is a batch axis: `max_batch_size` above 0."""

    max_rows: int = 0
    """Of a run at most, together; 0: `max_batch_size`."""
    delay_s: float = 0.0
    """How long the oldest may wait for company that is likely to come; 0: never."""
    preferred: tuple[int, ...] = ()
    """Sizes at which a run begins without waiting for more, ascending."""
    objective_s: float = 0.0
    """What p99 of queue and run together shall stay below: sizes and delays are chosen for it. 0: none is stated."""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What holds for waiting requests of one class of priority, in each worker's queue."""

    level: int = 0
    """The class; 0: each that has no policy of its own."""
    max_queue: int = 0
    """Requests that may wait; 0: as many as the model's `max_queue` admits."""
    timeout_s: float = 0.0
    """How long one may wait before its run begins; 0: to its deadline."""
    delays: bool = False
    """What is past the timeout waits on, behind everything else, instead of being answered."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that a worker needs to serve one version of a model, and a gateway to describe it.

    Empty `inputs` or `outputs` mean: taken from the artefact, and told by the worker when it is ready.
    `device` is `cpu`, `cuda`, `cuda:N` or a GPU's UUID. Sizes in bytes, durations in seconds.
    """

    name: str
    version: str
    directory: str
    """The version's folder, absolute."""
    artefact: str
    """The file in it that the engine loads."""
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
    """A worker that has grown beyond it is replaced, the new one ready first. None: never."""
    gpu_memory_bytes: int | None = None
    python: str = ""
    """Interpreter of the worker; empty: the server's own."""
    env: dict[str, str] = field(default_factory=dict[str, str])
    deadline_s: float = 60.0
    hang_limit_s: float = 5.0
    load_timeout_s: float = 300.0
    max_queue: int = 512
    max_queue_bytes: int = 1 << 30
    batching: Batching = Batching()
    priority: int = 0
    """The class of requests that name none: 1 is the highest, 0 the middle one."""
    priority_levels: int = PRIORITY_LEVELS
    queue_policies: tuple[QueuePolicy, ...] = ()
    retry_on_crash: bool = False
    trusted: bool = False
    config: dict[str, Any] = field(default_factory=dict[str, Any])  # ModelConfig as JSON, passed through unread
    """What `config.pbtxt` said, for `/config`; completed by the gateway."""

    def effective_priority(self, priority: int) -> int:
        """The class of a request that names this priority; one that does not exist means none was named."""
        if 0 < priority <= self.priority_levels:
            return priority
        return self.priority or (self.priority_levels + 1) // 2


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a ready worker says of its model: declared by configuration, completed from the artefact."""

    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
