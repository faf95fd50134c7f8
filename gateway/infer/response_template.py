"""Replies that were given before: their words are there, only the bytes of the outputs change. Pure.

Two kinds: outputs that all follow as bytes, and outputs that all stand in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from mmsup.gateway.dispatch.reply_validation import Checked
from mmsup.gateway.http import response, response_bytes
from mmsup.gateway.protocol import json_tensors
from mmsup.gateway.protocol.infer_request import Wanted
from mmsup.gateway.protocol.infer_response import Reply
from mmsup.ipc.messages.data import Place
from mmsup.ipc.specs import TensorSpec


class Binary:
    """JSON that never changes, then the outputs."""

    __slots__ = ("_body", "_said", "_start")

    def __init__(self, said: Checked, made: Reply) -> None:
        self._said = said
        self._start, _ = response_bytes.tensors(made, {})
        self._body = made.head

    def fits(self, said: Checked, places: Sequence[Place]) -> bool:
        """Whether a result has the same words, and is all inline."""
        return (said is self._said or said.words == self._said.words) and tuple not in map(type, places)

    def bytes_with(self, places: Sequence[Place]) -> bytes:
        """The whole reply with these outputs."""
        return b"".join((self._start, response_bytes.end(), self._body, *cast("Sequence[bytes]", places)))


class Text:
    """JSON with the outputs in it."""

    __slots__ = ("_parts", "_said", "_size")

    def __init__(self, said: Checked, parts: list[bytes]) -> None:
        """`parts`: what stands before, between and behind the outputs."""
        self._said = said
        self._parts = parts
        self._size = sum(map(len, parts))

    def fits(self, said: Checked, places: Sequence[Place]) -> bool:
        """Whether a result has the same words, and is all inline."""
        return (said is self._said or said.words == self._said.words) and tuple not in map(type, places)

    def bytes_with(self, places: Sequence[Place]) -> bytes:
        """The whole reply with these outputs."""
        pieces, size = [self._parts[0]], self._size
        for spec, place, part in zip(self._said.outputs, places, self._parts[1:], strict=True):
            text = _written(spec, place)
            size += len(text)
            pieces += (text, part)
        return b"".join((response_bytes.start(200, response.JSON, {}, size), response_bytes.end(), *pieces))


Familiar = Binary | Text


def familiar(said: Checked, wanted: Sequence[Wanted], made: Reply, places: Sequence[Place]) -> Familiar | None:
    """How to say this reply again with other outputs; None if more than they may change."""
    if None in said.sizes or tuple in map(type, places) or any(each.classes for each in wanted):
        return None
    if [each.spec.name for each in wanted] != [each.name for each in said.outputs]:
        return None
    if all(each.binary for each in wanted):
        return Binary(said, made)
    if any(each.binary for each in wanted):
        return None
    parts = _around(said, made.head, places)
    return None if parts is None else Text(said, parts)


def _around(said: Checked, head: bytes, places: Sequence[Place]) -> list[bytes] | None:
    """The text before, between and behind the outputs."""
    parts: list[bytes] = []
    for spec, place in zip(said.outputs, places, strict=True):
        text = _written(spec, place)
        before, mark, head = head.partition(b'"data":' + text)
        if not mark:
            return None
        parts.append(before + b'"data":')
    return [*parts, head]


def _written(spec: TensorSpec, place: Place) -> bytes:
    assert not isinstance(place, tuple), "inline outputs only"
    return json_tensors.to_json(memoryview(place), spec.datatype, spec.name)
