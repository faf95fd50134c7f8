"""Runs a model before it is ready, so that the first request does not pay for lazy kernels, arenas, code caches.

A model whose configuration has samples (`model_warmup` in config.pbtxt) runs these, and one that fails is a load that
fails. Any other model but a user's class, whose call may have side effects, runs once on zeros, empty strings, and 1
for every size that is left open. Nobody asked for that run, and a model may rightly refuse zeros (a divisor, a size, a
scale): its failure is logged, and the model serves. The parameter `warmup` leaves that run out (`false`), or asks for
it (`true`): then a failure on inputs of which nothing was guessed is a load that fails. In either case, so is a result
that contradicts the declared outputs.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.engine import as_streaming_engine, bool_parameter
from mmsup.worker.execution.executor import Executor, Result
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.responses import first_response
from mmsup.worker.startup.warm_up_samples import sample_inputs

ADVICE: Final = "the parameter `warmup: false` leaves this run out, model_warmup in config.pbtxt gives it samples"
log = logging.getLogger("mmsup.worker")


def warm_up(executor: Executor) -> ModelFailure | None:
    metadata, spec = executor.metadata, executor.spec
    samples: list[dict[str, Any]] = spec.config.get("model_warmup", [])  # JSON of the configuration
    if samples:
        return _run_samples(executor, samples)
    if not wants_warm_up(spec):
        return None
    executor.mark_busy()
    result = _run(executor, placeholder_inputs(metadata))
    if not isinstance(result, ModelFailure):
        return None
    is_unasked_refusal = "warmup" not in spec.parameters and not result.is_contradiction
    if result.code == "inference_failed" and (is_unasked_refusal or has_guessed_inputs(metadata)):
        log.warning("the warm-up run on zeros failed, and the model serves (%s): %s", ADVICE, result.text)
        return None
    text = f"in its warm-up run on zeros (parameter `warmup`), {result.text}"
    return ModelFailure(result.code, text, result.device_fault, result.detail)


def _run_samples(executor: Executor, samples: list[dict[str, Any]]) -> ModelFailure | None:
    """Run each sample `count` times, in order; the first failure."""
    for at, sample in enumerate(samples):
        name = f"model_warmup[{at}] '{sample.get('name', '')}'"
        try:
            inputs = sample_inputs(sample, executor.metadata, executor.spec.directory)
        except (ValueError, OSError) as error:
            text = error.strerror if isinstance(error, OSError) else str(error)
            raise ModelError("load_failed", f"model '{executor.spec.name}': {name}: {text}") from error
        for _ in range(max(sample.get("count", 0), 1)):
            executor.mark_busy()
            result = _run(executor, inputs)
            if isinstance(result, ModelFailure):
                text = f"in its warm-up sample {name}, {result.text}"
                return ModelFailure(result.code, text, result.device_fault, result.detail)
    return None


def _run(executor: Executor, inputs: Arrays) -> Result:
    """Of a model that answers many times the first response; none of one that awaits, which has no event loop yet."""
    engine = as_streaming_engine(executor.engine)
    if engine is None:
        return executor.run_one(inputs)
    first = call_model_code(
        partial(first_response, engine, inputs, [each.name for each in executor.metadata.outputs]), executor.spec
    )
    return first if isinstance(first, ModelFailure) else dict(first)


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
