"""`pb_utils.InferenceRequest`: a request that the model has got, or one that it makes for another model."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final

from mmsup.worker.engines.triton_python.api import model_calls
from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.request_content import SEQUENCE_END, SEQUENCE_START, RequestContent
from mmsup.worker.engines.triton_python.api.response_sender import InferenceResponseSender
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor

RELEASE_ALL: Final = 1
RELEASE_RESCHEDULE: Final = 2
NO_RESCHEDULING: Final = (
    "this version does not reschedule requests: send several responses as a decoupled model, or keep the state between "
    "requests in the model"
)
NO_SENDER: Final = "a request that the model has made itself has no response sender: exec() returns its response"


class InferenceRequest(RequestContent):
    __slots__ = ("_sender",)

    _sender: InferenceResponseSender
    """Of a request that came to the model."""

    def exec(self, decoupled: bool = False) -> Any:
        return model_calls.call(self, is_decoupled=decoupled)

    def async_exec(self, decoupled: bool = False) -> Awaitable[Any]:
        return model_calls.call_async(self, is_decoupled=decoupled)

    def get_response_sender(self) -> InferenceResponseSender:
        sender: InferenceResponseSender | None = getattr(self, "_sender", None)
        if sender is None:
            raise TritonModelException(NO_SENDER)
        sender.take()
        return sender

    def is_cancelled(self) -> bool:
        sender: InferenceResponseSender | None = getattr(self, "_sender", None)
        return sender is not None and sender.is_cancelled()

    def set_release_flags(self, flags: int) -> None:
        if int(flags) != RELEASE_ALL:
            raise TritonModelException(NO_RESCHEDULING)


def received(
    inputs: Sequence[BackendTensor],
    wanted: Sequence[str],
    parameters: Mapping[str, Any],  # scalars
    sender: InferenceResponseSender,
) -> InferenceRequest:
    """A request that has come, with the sender of its responses."""
    request = InferenceRequest(inputs=inputs, requested_output_names=wanted)
    request._sender = sender
    if parameters:
        own = dict(parameters)
        request._correlation_id = own.pop("sequence_id", 0)
        request._flags = SEQUENCE_START * bool(own.pop("sequence_start", False))
        request._flags |= SEQUENCE_END * bool(own.pop("sequence_end", False))
        request._parameters = json.dumps(own)
    return request
