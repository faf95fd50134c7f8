"""Dataclasses as lists and back, checked against their annotations. Standard library only.

A message is `[class name, field, field, ...]`; a nested dataclass is a list of its fields. The keeper writes such lists
as JSON, all other processes as msgpack (codec.py). Anything that does not match its dataclass is a WireError.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Final

Decoder = Callable[[Any], Any]  # a plain value in, a value of the annotated type out


class WireError(Exception):
    """Bytes that are no message of this version of the protocol."""


def to_plain(message: object) -> list[Any]:  # any field values
    return [type(message).__name__, *_plain(message)]


def from_plain(raw: Any, expected: Iterable[type[Any]]) -> Any:  # one of `expected`; callers match on it
    """The message in `raw`; WireError if it is none of `expected`."""
    if not isinstance(raw, list) or not raw:
        raise WireError("a message is a list that begins with its name")
    for kind in expected:
        if kind.__name__ == raw[0]:
            return record_decoder(kind)(raw[1:])
    raise WireError(f"message {raw[0]!r:.40} is not expected here")


def to_json(message: object) -> bytes:
    return json.dumps(to_plain(message), separators=(",", ":")).encode()


def from_json(data: bytes, expected: Iterable[type[Any]]) -> Any:  # one of `expected`; callers match on it
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {type(error).__name__}") from error
    return from_plain(raw, expected)


_SCALARS: Final = frozenset({str, int, float, bool, bytes, dict, type(None)})
"""Sent as they are."""
_parts: dict[type[Any], Callable[[Any], Iterable[Any]] | None] = {}
"""How the fields of each type that was sent are read, or the elements of a tuple; None if it is sent as it is."""


def _plain(value: Any) -> Any:  # any field value, recursively
    kind = type(value)
    try:
        parts = _parts[kind]
    except KeyError:
        parts = _parts[kind] = _parts_of(kind)
    if parts is None:
        return value
    return [each if type(each) in _SCALARS else _plain(each) for each in parts(value)]


def _parts_of(kind: type[Any]) -> Callable[[Any], Iterable[Any]] | None:
    if issubclass(kind, tuple):
        return iter
    names = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    if len(names) > 1:
        return operator.attrgetter(*names)
    return (lambda value: [getattr(value, name) for name in names]) if dataclasses.is_dataclass(kind) else None


_decoders: dict[type[Any], Decoder] = {}


def record_decoder(kind: type[Any]) -> Decoder:
    """The function that makes a `kind` of the list of its fields; cached."""
    if kind not in _decoders:
        hints = typing.get_type_hints(kind)
        names = [each.name for each in dataclasses.fields(kind)]
        checks = [_decoder(hints[name]) for name in names]

        def make(raw: Any) -> Any:  # a list of plain values in, a `kind` out
            if not isinstance(raw, list) or len(raw) != len(checks):
                raise WireError(f"{kind.__name__} has {len(checks)} fields")
            try:
                return kind(*[check(value) for check, value in zip(checks, raw, strict=True)])
            except WireError as error:
                raise WireError(f"{kind.__name__}: {error}") from None

        _decoders[kind] = make
    return _decoders[kind]


def _decoder(hint: Any) -> Decoder:  # a type annotation
    if hint is Any:
        return lambda value: value
    if dataclasses.is_dataclass(hint):
        return record_decoder(typing.cast("type[Any]", hint))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        each = _decoder(arguments[0])
        return lambda raw: tuple([each(value) for value in _typed(raw, list)])
    if origin is dict:
        inner = _decoder(arguments[1])
        return lambda raw: {_typed(key, str): inner(value) for key, value in _typed(raw, dict).items()}
    if origin in (types.UnionType, typing.Union):
        # Bytes may be sent as a memoryview, without a copy; they are received as bytes.
        present = [_decoder(each) for each in arguments if each not in (types.NoneType, memoryview)]
        assert len(present) == 1, f"{hint}: a field is of one type, or that or None"
        return lambda raw: None if raw is None else present[0](raw)
    if hint is float:
        return lambda raw: float(raw) if type(raw) is int else _typed(raw, float)
    assert hint in (int, str, bytes, bool), f"{hint}: no such field on the wire"
    return lambda raw: _typed(raw, hint)


def _typed(value: Any, kind: type[Any]) -> Any:  # a value of exactly that type: True is no int here
    if type(value) is not kind:
        raise WireError(f"{kind.__name__} expected, {type(value).__name__} came")
    return value
