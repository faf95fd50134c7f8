"""Requests of a model to other models of the server (BLS): `InferenceRequest.exec` and `async_exec`.

A call that fails gives a response with an error, as in Triton; it never raises. Its codes are those of TritonError.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.errors import make_error
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.engines.triton_python.api.errors import ErrorCode, TritonError, TritonModelException
from mmsup.worker.engines.triton_python.api.request_content import SEQUENCE_END, SEQUENCE_START, RequestContent
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor
from mmsup.worker.execution.call_error import CallError

if TYPE_CHECKING:
    import asyncio  # takes 30 ms of a start

NOT_NOW: Final = "a model calls others only in execute, while it serves a request"
_CODES: Final = {
    "unknown_model": ErrorCode.NOT_FOUND,
    "unknown_version": ErrorCode.NOT_FOUND,
    "not_found": ErrorCode.NOT_FOUND,
    "bad_request": ErrorCode.INVALID_ARG,
    "already_exists": ErrorCode.ALREADY_EXISTS,
    "unsupported": ErrorCode.UNSUPPORTED,
    "not_implemented": ErrorCode.UNSUPPORTED,
    "cancelled": ErrorCode.CANCELLED,
    "deadline_exceeded": ErrorCode.UNAVAILABLE,
}


class CallPath:
    """Whose calls are made now: of the models of a process one runs at a time."""

    def __init__(self) -> None:
        self._calls: ModelCalls | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """In which calls of other threads are made."""

    def use(self, calls: ModelCalls, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._calls, self._loop = calls, loop

    def infer(self, model: str, inputs: Mapping[str, Array], options: dict[str, Any]) -> dict[str, Array]:
        """CallError if there is no result. From another thread than the worker's own, its event loop makes the call."""
        calls = self._found()
        if threading.current_thread() is threading.main_thread() or self._loop is None:
            return calls.infer(model, inputs, **options)
        from asyncio import run_coroutine_threadsafe  # noqa: PLC0415 - as above; its loop has imported it

        return run_coroutine_threadsafe(calls.infer_async(model, inputs, **options), self._loop).result()

    async def infer_async(self, model: str, inputs: Mapping[str, Array], options: dict[str, Any]) -> dict[str, Array]:
        return await self._found().infer_async(model, inputs, **options)

    def _found(self) -> ModelCalls:
        if self._calls is None:
            raise TritonModelException(NOT_NOW)
        return self._calls


PATH: Final = CallPath()


class ResponseIterator:
    """What a call of a decoupled model gives."""

    def __init__(self, responses: Iterator[InferenceResponse]) -> None:
        self._responses = responses

    def __iter__(self) -> Iterator[InferenceResponse]:
        return self

    def __next__(self) -> InferenceResponse:
        return next(self._responses)

    def cancel(self) -> None:
        """Nothing more of it is wanted."""
        self._responses = iter(())


def call(request: RequestContent, *, is_decoupled: bool) -> Any:  # a response, or an iterator of responses
    try:
        response = _response(PATH.infer(request.model_name(), _arrays(request), _options(request)))
    except CallError as error:
        response = _failure(error)
    return ResponseIterator(iter((response,))) if is_decoupled else response


async def call_async(request: RequestContent, *, is_decoupled: bool) -> Any:  # as `call`
    try:
        response = _response(await PATH.infer_async(request.model_name(), _arrays(request), _options(request)))
    except CallError as error:
        response = _failure(error)
    return ResponseIterator(iter((response,))) if is_decoupled else response


def _arrays(request: RequestContent) -> dict[str, Array]:
    return {each.name(): each.host_array() for each in request.inputs()}


def _options(request: RequestContent) -> dict[str, Any]:  # of ModelCalls.infer
    parameters: dict[str, Any] = json.loads(request.parameters())
    if request.correlation_id():
        parameters["sequence_id"] = request.correlation_id()
        parameters["sequence_start"] = bool(request.flags() & SEQUENCE_START)
        parameters["sequence_end"] = bool(request.flags() & SEQUENCE_END)
    return {
        "version": str(request.model_version()) if request.model_version() > 0 else "",
        "outputs": request.requested_output_names(),
        "parameters": parameters,
        "timeout_s": request.timeout() / 1e6 if request.timeout() else None,
    }


def _response(outputs: Mapping[str, Array]) -> InferenceResponse:
    return InferenceResponse([BackendTensor(name, array) for name, array in outputs.items()])


def _failure(error: CallError) -> InferenceResponse:
    code = _CODES.get(error.code)
    if code is None:
        retryable = make_error(error.code, "").retryable
        code = ErrorCode.UNAVAILABLE if retryable else ErrorCode.INTERNAL
    return InferenceResponse(error=TritonError(error.text, code))
