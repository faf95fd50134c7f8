"""JSON templates: requests that differ only in their numbers, of which the other text is parsed once. Pure.

A text is split at each list of plain values that follows `"data":`. The parts between the lists are the template, which
is the key of a cached request. That is sound because it was tested: the parser has read the same template with an
unguessable string in place of each list, and found each of these strings as the `data` of one input. Where a string is
valid a list is too; so any list at that place is that input's data, and nothing else differs.
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
"""In longer texts the lists cost more than the text around them."""
_LIST: Final = re.compile(rb'"data"\s*:\s*\[([^\[\]{}"]*)\]')
JsonTemplate = tuple[bytes, ...]


def split_template(text: bytes) -> tuple[JsonTemplate, list[bytes]] | None:
    """The template and the contents of its lists; None if the text should be parsed as a whole."""
    parts = _LIST.split(text)
    template = tuple(parts[::2])
    if len(template) < 2 or sum(map(len, template)) > TEMPLATE_LIMIT_BYTES:
        return None
    return template, parts[1::2]


def input_names(template: JsonTemplate) -> list[str] | None:
    """The name of the input of each list, as the parser sees it; None if a list is no input's data."""
    marks = [secrets.token_hex(16) for _ in template[1:]]
    text = template[0] + b"".join(
        [b'"data":"%b"%b' % (mark.encode(), part) for mark, part in zip(marks, template[1:], strict=True)]
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
    """The values of the lists; None if they are not valid JSON."""
    try:
        return [orjson.loads(b"[%b]" % each) for each in lists]
    except orjson.JSONDecodeError:
        return None
