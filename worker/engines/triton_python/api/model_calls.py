"""Requests of a model to other models of the server (BLS): `InferenceRequest.exec` and `async_exec`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.request_content import RequestContent

NOT_THERE: Final = "this version does not let a model call another one: call both from the client"


def call(request: RequestContent, *, is_decoupled: bool) -> Any:  # a response, or an iterator of responses
    del request, is_decoupled
    raise TritonModelException(NOT_THERE)


def call_async(request: RequestContent, *, is_decoupled: bool) -> Awaitable[Any]:  # as `call`
    del request, is_decoupled
    raise TritonModelException(NOT_THERE)
