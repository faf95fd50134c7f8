"""JSON documents: parsing within limits on nesting and containers, and serialising. Pure.

NaN, Infinity and -Infinity are accepted and written as bare words, as public clients do. orjson does not accept them,
so the standard library parses the few documents that contain one.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any, Final, TypeGuard, cast

import orjson

from mmsup.gateway.protocol import large_json
from mmsup.gateway.protocol.large_json import CONTAINER_LIMIT, DEPTH_LIMIT, DEPTH_STEP, NOT_BRACKETS
from mmsup.ipc.errors import CallerError

LARGE_BYTES: Final = 1 << 16
"""Larger texts are parsed in steps (large_json.py)."""
_FAILED: Final = "failed to parse the request JSON buffer: "
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_error(reason: str) -> CallerError:
    return CallerError("bad_request", _FAILED + reason)


def parse_json(text: bytes | memoryview) -> Any:  # any JSON value
    """The value of a client's text; CallerError if it is not valid or exceeds a limit."""
    if len(text) > LARGE_BYTES:
        return _parse_large(memoryview(text))
    raw = bytes(text)
    if not raw or raw.isspace():
        raise parse_error("the document is empty")
    _check_nesting(raw)
    return _parse(raw, 0)


def _parse_large(text: memoryview) -> Any:  # as in `read`, long lists of numbers being `NumberList`s
    try:
        remainder, lists = large_json.extract_lists(text, _parse)
    except large_json.LimitExceeded as error:
        raise parse_error(str(error)) from None
    value = _parse(remainder, 0)
    return large_json.restore_lists(value, lists) if lists else value


def _parse(raw: bytes, at: int) -> Any:  # as in `read`; `at` is the offset of the text
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise parse_error(f"{error.msg} at byte {at + error.pos}") from None
    return _parse_with_constants(raw, at)


def _check_nesting(raw: bytes) -> None:
    """CallerError if lists and objects are too many or nested too deep, before a parser builds them."""
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > CONTAINER_LIMIT:
        shown = f"{opened} lists and objects, at most {CONTAINER_LIMIT} are read"
        raise parse_error(f"{shown}: send flat lists or binary tensors")
    if opened <= DEPTH_LIMIT:
        return
    brackets = _STRING.sub(b"", raw).translate(None, NOT_BRACKETS)
    deepest = max(itertools.accumulate(map(DEPTH_STEP.__getitem__, brackets)), default=0)
    if deepest > DEPTH_LIMIT:
        raise parse_error(f"nested {deepest} deep, at most {DEPTH_LIMIT} is read")


def _parse_with_constants(raw: bytes, at: int) -> Any:  # as in `_parse`
    try:
        return json.loads(raw, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise parse_error(f"{error.msg} at byte {at + error.pos}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8; an integer of thousands of digits; 1e400
        raise parse_error(f"{error}"[:200]) from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text:.40} is too large")
    return value


def as_object(value: object) -> dict[str, Any] | None:  # a JSON object
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None  # as above


def as_list(value: object) -> list[Any] | None:  # JSON values
    return value if _is_list(value) else None


def _is_list(value: object) -> TypeGuard[list[Any]]:  # as above
    return isinstance(value, list)
