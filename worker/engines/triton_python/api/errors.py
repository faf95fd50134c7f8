"""Errors of `triton_python_backend_utils`: what a model raises, and what it puts into a response.

Source: the README of triton-inference-server/python_backend, "Error Handling"; the numbers are those of tritonserver.h.
"""

from __future__ import annotations

import enum
from typing import Final

from mmsup.worker.execution.model_errors import ModelFailure, scrub


class ErrorCode(enum.IntEnum):
    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


CODES: Final = {
    ErrorCode.UNKNOWN: "inference_failed",
    ErrorCode.INTERNAL: "inference_failed",
    ErrorCode.NOT_FOUND: "not_found",
    ErrorCode.INVALID_ARG: "bad_request",
    ErrorCode.UNAVAILABLE: "model_unavailable",
    ErrorCode.UNSUPPORTED: "unsupported",
    ErrorCode.ALREADY_EXISTS: "already_exists",
    ErrorCode.CANCELLED: "cancelled",
}
"""The code that a client sees for each."""


class TritonModelException(Exception):  # noqa: N818 - its public name
    """What a model raises for a fault of its own."""


class TritonError:
    """Why one request has no outputs."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: int = ErrorCode.INTERNAL) -> None:
        self._message = str(message)
        self._code = ErrorCode(code)

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code

    def __str__(self) -> str:
        return self._message


def failure_of_error(error: TritonError) -> ModelFailure:
    """What the client of the request is told."""
    return ModelFailure(
        CODES[error.code()], scrub(error.message()) or "the model answered with an error without a text"
    )
