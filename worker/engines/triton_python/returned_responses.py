"""What `execute` of a model that is not decoupled has to give: one response for each request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.request import InferenceRequest
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.response_sender import InferenceResponseSender

NO_RESPONSES: Final = "execute returned None, and no response sender was asked for: it returns a list of responses"

Execute = Callable[[list[InferenceRequest]], Any]
"""The method of the user's class."""


def checked_responses(returned: Any, senders: Sequence[InferenceResponseSender]) -> list[InferenceResponse]:
    """A response for each request, of what `execute` returned or sent; TritonModelException if there is not."""
    if returned is None:
        if not all(each.is_taken for each in senders):
            raise TritonModelException(NO_RESPONSES)
        return [_sent(each) for each in senders]
    if not isinstance(returned, list):
        raise TritonModelException(f"execute returned a {type(returned).__name__} instead of a list of responses")
    if len(returned) != len(senders):
        raise TritonModelException(f"execute returned {len(returned)} responses for {len(senders)} requests")
    for each in returned:
        if not isinstance(each, InferenceResponse):
            raise TritonModelException(f"execute returned a {type(each).__name__} in the place of an InferenceResponse")
    return returned


def _sent(sender: InferenceResponseSender) -> InferenceResponse:
    response = sender.wait()
    if response is None:
        raise TritonModelException("the response sender was closed before a response was sent")
    return response
