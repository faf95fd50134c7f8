"""The forms in which a model may answer one request: one response, an iterator of them, one that awaits, or nothing."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.execution.engine import Response, Responses, StreamingEngine


def mapped(answer: Any, convert: Callable[[Any], Response]) -> Responses:  # as model code gave it
    """The same form, with `convert` applied to each response when it comes. Closing it closes `answer`."""
    if answer is None:
        return None
    if hasattr(answer, "__anext__"):
        return _mapped_async(answer, convert)
    if inspect.isawaitable(answer):
        return _mapped_later(answer, convert)
    if hasattr(answer, "__next__"):
        return _mapped_all(answer, convert)
    return convert(answer)


def is_awaited(answer: Responses) -> bool:
    """Whether it needs an event loop."""
    return hasattr(answer, "__anext__") or inspect.isawaitable(answer)


def first_response(engine: StreamingEngine, inputs: Mapping[str, Array], wanted: Sequence[str]) -> Response:
    """The first response to a request of our own, empty if there is none or it is awaited; the rest is not made."""
    answer = engine.respond(inputs, wanted)
    if inspect.iscoroutine(answer):
        answer.close()
    if answer is None or is_awaited(answer):
        return {}
    if isinstance(answer, Mapping):
        return answer
    try:
        return next(cast("Iterator[Response]", answer), {})
    finally:
        close(answer)


def close(answer: Any) -> None:  # as model code gave it
    """Close an iterator that is not read to its end, if it can be closed."""
    found = getattr(answer, "close", None)
    if found is not None:
        found()


def _mapped_all(answer: Iterator[Any], convert: Callable[[Any], Response]) -> Iterator[Response]:
    try:
        for each in answer:
            yield convert(each)
    finally:
        close(answer)


async def _mapped_async(answer: AsyncIterator[Any], convert: Callable[[Any], Response]) -> AsyncIterator[Response]:
    try:
        async for each in answer:
            yield convert(each)
    finally:
        found = getattr(answer, "aclose", None)
        if found is not None:
            await found()


async def _mapped_later(answer: Awaitable[Any], convert: Callable[[Any], Response]) -> Response | None:
    made = await answer
    return None if made is None else convert(made)
