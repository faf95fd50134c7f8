"""The warm-up run, before a model is ready.

It takes what would otherwise be the first caller's price: lazy kernels, arenas, code caches. Its input is zeros, empty
strings, and 1 for every size that is left open. Where nothing was guessed, a warm-up that fails is a load that fails:
the first caller would have met it. Where something was (an open size, a string), the model's refusal proves nothing:
it is noted in the log, and the model serves. A user's class is not run unasked, since a call may have effects; the
parameter `warmup` says `true` or `false` for any model.
"""

from __future__ import annotations

import logging

import numpy as np

from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import bool_parameter
from mmsup.worker.execution.executor import Executor
from mmsup.worker.execution.model_errors import ModelFailure

log = logging.getLogger("mmsup.worker")


def warm_up(execution: Executor) -> ModelFailure | None:
    """Run once if the model is of that kind; a Failure if it cannot serve."""
    metadata, spec = execution.metadata, execution.spec
    if not wants_warm_up(spec):
        return None
    outcome = execution.run_one(placeholder_inputs(metadata))
    if not isinstance(outcome, ModelFailure):
        return None
    if has_guessed_inputs(metadata) and outcome.code == "inference_failed":
        log.warning("the warm-up run, on inputs that were guessed, failed; serving anyway: %s", outcome.text)
        return None
    return ModelFailure(outcome.code, f"in its warm-up run, {outcome.text}", outcome.device_fault)


def wants_warm_up(spec: ModelSpec) -> bool:
    """Whether a model is run before it is ready."""
    return bool_parameter(spec.parameters, "warmup") if "warmup" in spec.parameters else spec.engine != "custom"


def placeholder_inputs(metadata: Metadata) -> Arrays:
    """An input for every tensor that must be given."""
    batch = (1,) if metadata.max_batch_size else ()
    return {each.name: _placeholder(each, batch) for each in metadata.inputs if not each.optional}


def has_guessed_inputs(metadata: Metadata) -> bool:
    """Whether `zeros` had to choose something that the model may rightly refuse."""
    return any(-1 in each.shape or each.datatype == "BYTES" for each in metadata.inputs)


def _placeholder(tensor: TensorSpec, batch: tuple[int, ...]) -> Array:
    shape = (*batch, *(1 if size == -1 else size for size in tensor.shape))
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=NUMPY[tensor.datatype])
