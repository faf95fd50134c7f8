"""JSON documents: read within bounds, written so that they read back the same. Pure.

NaN, Infinity and -Infinity are read and written as bare words, as public clients do; orjson knows neither, so the
standard library reads the few documents that hold such a word.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any, Final, TypeGuard, cast

import orjson

from mmsup.gateway.protocol import large_json
from mmsup.gateway.protocol.large_json import CONTAINER_LIMIT, DEPTH_LIMIT
from mmsup.gateway.protocol.large_json_runs import restore_lists
from mmsup.ipc.errors import CallerError

LARGE_BYTES: Final = 1 << 16
"""From here on a text is read in steps (scan.py)."""
_PARSE: Final = "failed to parse the request JSON buffer: "
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_DEPTH_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(_DEPTH_STEP))


def parse_error(reason: str) -> CallerError:
    """The error of a document that cannot be read."""
    return CallerError("bad_request", _PARSE + reason)


def parse_json(text: bytes | memoryview) -> Any:  # any JSON value
    """The value that a client's text holds; CallerError if it holds none or passes a bound."""
    if len(text) > LARGE_BYTES:
        return _parse_large(memoryview(text))
    raw = bytes(text)
    if not raw or raw.isspace():
        raise parse_error("the document is empty")
    check_nesting(raw)
    return _parse(raw, 0)


def _parse_large(text: memoryview) -> Any:  # as in `read`, long lists of numbers being `Run`s
    try:
        rest, runs = large_json.extract_lists(text, _parse)
    except large_json.LimitExceeded as beyond:
        raise parse_error(str(beyond)) from None
    value = _parse(rest, 0)
    return restore_lists(value, runs) if runs else value


def _parse(raw: bytes, at: int) -> Any:  # as in `read`; `at` is where the text stood
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise parse_error(f"{error.msg} at byte {at + error.pos}") from None
    return _parse_with_constants(raw, at)


def check_containers(raw: bytes) -> int:
    """How many lists and objects there are; CallerError if they are too many."""
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > CONTAINER_LIMIT:
        shown = f"{opened} lists and objects, at most {CONTAINER_LIMIT} are read"
        raise parse_error(f"{shown}: send flat lists or binary tensors")
    return opened


def check_nesting(raw: bytes) -> None:
    """CallerError if lists and objects are too many or too deep, before a parser builds them."""
    if check_containers(raw) <= DEPTH_LIMIT:
        return
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    deepest = max(itertools.accumulate(map(_DEPTH_STEP.__getitem__, brackets)), default=0)
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
    """A value if it is an object, else None."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None  # as above


def as_list(value: object) -> list[Any] | None:  # JSON values
    """A value if it is a list, else None."""
    return value if _is_list(value) else None


def _is_list(value: object) -> TypeGuard[list[Any]]:  # as above
    return isinstance(value, list)


def dump_json(value: object) -> bytes:
    """A value as JSON; it may hold `orjson.Fragment`s. NaN is the business of those who make fragments."""
    return orjson.dumps(value)
