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
_ID: Final = re.compile(rb'\{"id": ?"([A-Za-z0-9_.:+/=-]{1,64})",')
_LIST: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[([^\[\]{}"]*)\]')
JsonTemplate = tuple[bytes, ...]


def split_template(text: bytes) -> tuple[JsonTemplate, list[bytes]] | None:
    """The template and the contents of its lists; None if the text should be parsed as a whole."""
    parts = _LIST.split(text)
    template = tuple(parts[::2])
    if len(template) < 2 or sum(map(len, template)) > TEMPLATE_LIMIT_BYTES:
        return None
    return template, parts[1::2]


def cut_id(text: bytes) -> tuple[str, bytes]:
    """The client's own id at the start of a request's JSON, and the text with as many zero bytes in its place. An empty
    id and the same text if there is none, or none of the plain form that clients write."""
    found = _ID.match(text)
    if found is None:
        return "", text
    start, end = found.span(1)
    return found[1].decode(), b"".join((text[:start], bytes(end - start), text[end:]))


def takes_id(text: bytes) -> bool:
    """Whether the parser takes the id that `cut_id` finds in this JSON for the request's, tested as for the lists."""
    found = _ID.match(text)
    if found is None:
        return False
    start, end = found.span(1)
    mark = secrets.token_hex(16)
    try:
        document = as_object(orjson.loads(b"".join((text[:start], mark.encode(), text[end:]))))
    except orjson.JSONDecodeError:
        return False
    return document is not None and document.get("id") == mark


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


def text_around_list(text: bytes) -> tuple[bytes, bytes] | None:
    """The text up to the bracket that begins the only list, and after the one that ends it. None if there are more.
    Whatever list stands between the two, even a nested one, is the data of the same input."""
    found = _LIST.search(text)
    if found is None or _LIST.search(text, found.end()):
        return None
    return text[: found.start(1) - 1], text[found.end(1) + 1 :]


def parse_lists(lists: Sequence[bytes]) -> list[Any] | None:
    """The values of the lists; None if they are not valid JSON."""
    try:
        return [orjson.loads(b"[%b]" % each) for each in lists]
    except orjson.JSONDecodeError:
        return None
