"""Loads one model: imports its engine, loads the artefact, runs the warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mmsup.ipc.memory.status_page import Activity, StatusPageWriter
from mmsup.ipc.messages.worker_control import LoadProgress
from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.startup.hidden_tensors import check_hidden_tensors, with_hidden_tensors

if TYPE_CHECKING:
    from mmsup.worker.execution.engine import Engine  # imports numpy
    from mmsup.worker.execution.executor import Executor

LOAD_CODES: Final = {"inference_failed": "load_failed", "gpu_oom": "does_not_fit"}
"""The codes of failures of a run when they happen in a load."""


def load_model(
    send: Callable[[object], None], spec: ModelSpec, page: StatusPageWriter, *, is_shared: bool = False
) -> Executor | ModelFailure:
    """What runs the model, or why it cannot be loaded. `send`: to the controller, which is told how far it is.
    `is_shared`: the process goes on after a failure, so what was loaded until then is released."""
    from mmsup.worker.execution.engine import LIBRARIES, open_engine  # noqa: PLC0415 - imports numpy, with its threads
    from mmsup.worker.execution.reshaped_engine import with_reshapes  # noqa: PLC0415

    spec = with_hidden_tensors(spec)
    send(LoadProgress(f"importing {LIBRARIES[spec.engine]}"))
    engine = call_model_code(lambda: with_reshapes(open_engine(spec.interface or spec.engine), spec), spec)
    if isinstance(engine, ModelFailure):
        return engine
    executor = _load(send, engine, spec, page)
    if is_shared and isinstance(executor, ModelFailure):
        call_model_code(engine.unload, spec)
    return executor


def _load(
    send: Callable[[object], None], engine: Engine, spec: ModelSpec, page: StatusPageWriter
) -> Executor | ModelFailure:
    from mmsup.worker.execution.engine import as_streaming_engine, completed_spec  # noqa: PLC0415 - as above
    from mmsup.worker.execution.executor import Executor  # noqa: PLC0415 - as above
    from mmsup.worker.execution.initial_state import initial_states  # noqa: PLC0415
    from mmsup.worker.startup.warm_up import wants_warm_up, warm_up  # noqa: PLC0415

    send(LoadProgress(f"loading {spec.artefact}"))
    metadata = call_model_code(lambda: engine.load(spec), spec)
    if isinstance(metadata, ModelFailure):
        return metadata
    if spec.decoupled and not metadata.decoupled:
        text = f"model '{spec.name}' is configured as decoupled, and only a Python class can answer many times"
        return ModelFailure("config_mismatch", text)
    if spec.sequences is not None:
        if as_streaming_engine(engine) is not None:
            text = f"model '{spec.name}' has sequences: its infer is to be a plain method that returns one response"
            return ModelFailure("config_mismatch", text)
        for checked in (
            call_model_code(check_hidden_tensors, spec, spec, metadata),
            call_model_code(initial_states, spec, spec),
        ):
            if isinstance(checked, ModelFailure):
                return checked
    page.set_activity(Activity.WARMING, time.monotonic_ns())
    send(LoadProgress("warming up", is_warm_up=True))
    spec = completed_spec(engine, spec)
    executor = Executor(engine, spec, metadata, page)
    failure = call_model_code(lambda: warm_up(executor), spec)
    if isinstance(failure, ModelFailure):
        return failure
    if wants_warm_up(spec) or spec.config.get("model_warmup"):
        page.batch_executed(0)  # the first run of this life is over, so the first request has the limits of any other
    return executor
