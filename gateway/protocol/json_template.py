"""Requests in JSON that differ in nothing but their numbers: the text around them is read once. Pure.

A text is cut at each list of plain values that follows `"data":`. What is left, the skeleton, is known by its exact
bytes, and so is the order that it means. That is sound because it was tried: the parser read the same skeleton with a
string that nobody could guess in place of each list, and found each of these strings as the `data` of one input. Where
a string can stand, a list can; so whatever list stands there next, it is that input's data, and nothing else differs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

import orjson

from mmsup.gateway.protocol.json_document import as_list, as_object

TEMPLATE_LIMIT_BYTES: Final = 2048
TEXT_LIMIT_BYTES: Final = 1 << 16
"""Longer lists cost more than all the text around them."""
_LIST: Final = re.compile(rb'"data"\s*:\s*\[([^\[\]{}"]*)\]')
JsonTemplate = tuple[bytes, ...]


def split_template(text: bytes) -> tuple[JsonTemplate, list[bytes]] | None:
    """The skeleton and what stood in its lists; None if this text is better read whole."""
    parts = _LIST.split(text)
    skeleton = tuple(parts[::2])
    if len(skeleton) < 2 or sum(map(len, skeleton)) > TEMPLATE_LIMIT_BYTES:
        return None
    return skeleton, parts[1::2]


def input_names(skeleton: JsonTemplate) -> list[str] | None:
    """The name of the input whose data each list is, as the parser sees it; None if that is not so."""
    marks = [secrets.token_hex(16) for _ in skeleton[1:]]
    text = skeleton[0] + b"".join(
        [b'"data":"%b"%b' % (mark.encode(), part) for mark, part in zip(marks, skeleton[1:], strict=True)]
    )
    try:
        document = as_object(orjson.loads(text))
    except orjson.JSONDecodeError:
        return None
    inputs: list[Any] = as_list(document.get("inputs")) or [] if document else []  # any JSON values
    members = [as_object(each) or {} for each in inputs]
    found = {each["data"]: each.get("name") for each in members if isinstance(each.get("data"), str)}
    names = [found.get(mark) for mark in marks]
    if len(inputs) != len(marks) or not all(isinstance(name, str) for name in names):
        return None
    return [str(name) for name in names]


def parse_lists(lists: Sequence[bytes]) -> list[Any] | None:
    """What stands in the lists; None if that is no JSON."""
    try:
        return [orjson.loads(b"[%b]" % each) for each in lists]
    except orjson.JSONDecodeError:
        return None
