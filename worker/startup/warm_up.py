"""Runs a model once before it is ready, so that the first request does not pay for lazy kernels, arenas, code caches.

The input is zeros, empty strings, and 1 for every size that is left open. Where nothing had to be guessed, a warm-up
that fails is a load that fails: the first request would have failed too. Where something was (an open size, a string),
the model's refusal proves nothing: it is logged, and the model serves. A user's class is not run by default, since a
call may have side effects; the parameter `warmup` is `true` or `false` for any model.
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


def warm_up(executor: Executor) -> ModelFailure | None:
    metadata, spec = executor.metadata, executor.spec
    if not wants_warm_up(spec):
        return None
    executor.mark_busy()
    result = executor.run_one(placeholder_inputs(metadata))
    if not isinstance(result, ModelFailure):
        return None
    if has_guessed_inputs(metadata) and result.code == "inference_failed":
        log.warning("the warm-up run, on inputs that were guessed, failed; serving anyway: %s", result.text)
        return None
    return ModelFailure(result.code, f"in its warm-up run, {result.text}", result.device_fault, result.detail)


def wants_warm_up(spec: ModelSpec) -> bool:
    return bool_parameter(spec.parameters, "warmup") if "warmup" in spec.parameters else spec.engine != "custom"


def placeholder_inputs(metadata: Metadata) -> Arrays:
    """An array for every input that is not optional."""
    batch = (1,) if metadata.max_batch_size else ()
    return {each.name: _placeholder(each, batch) for each in metadata.inputs if not each.optional}


def has_guessed_inputs(metadata: Metadata) -> bool:
    """Whether the placeholders have sizes or strings that the model may rightly refuse."""
    return any(-1 in each.shape or each.datatype == "BYTES" for each in metadata.inputs)


def _placeholder(tensor: TensorSpec, batch: tuple[int, ...]) -> Array:
    shape = (*batch, *(1 if size == -1 else size for size in tensor.shape))
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=NUMPY[tensor.datatype])
