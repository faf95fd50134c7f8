"""The one place where whatever a model raises is caught: its trace to the log, a Failure to whoever asked."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from mmsup.ipc.specs import ModelSpec
from mmsup.worker.execution.model_errors import ModelFailure, failure_of

T = TypeVar("T")


class DeviceLost(Exception):  # noqa: N818 - what happened to the device; the process ends by it
    """The CUDA context is gone. Raised outside of any guard, for `__main__`."""


def call_model_code(call: Callable[..., T], spec: ModelSpec, *arguments: object) -> T | ModelFailure:
    """What `call` gives, or why it gave nothing. Only a wish to exit passes: that is the model's own end of itself."""
    try:
        return call(*arguments)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, asyncio's CancelledError too
        traceback.print_exc()
        return failure_of(error, spec)
