"""The JSON of a load request with files in it: their base64 is cut out before the rest is parsed. Pure.

A file's text is found by its key, `"file:…": "`, whose first quote is not escaped, so that it begins a string; the text
ends at the next quote, since base64 has none. An unguessable string stands in its place when the rest is parsed.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import Any, Final

from mmsup.gateway.protocol import json_document
from mmsup.gateway.protocol.control_calls import FILE_PREFIX, FILES_LIMIT
from mmsup.gateway.protocol.json_document import as_object, parse_error

Json = dict[str, Any]  # a JSON object
_START: Final = b'"' + FILE_PREFIX.encode()
_KEY: Final = re.compile(rb'"file:[^"\\]{0,4096}"[ \t\r\n]*:[ \t\r\n]*"')
_STEP: Final = 1 << 20
"""Characters decoded at a time, which holds the interpreter lock for some milliseconds; four make three bytes."""


def load_document(body: bytearray) -> Json:
    """The document, in whose `parameters` files are bytes; CallerError."""
    rest, texts = _cut(body)
    if not rest.strip():
        return {}
    document = as_object(json_document.parse_json(rest))
    if document is None:
        raise parse_error("it is not an object")
    parameters = as_object(document.get("parameters"))
    if parameters is not None:
        for key, value in parameters.items():
            if isinstance(value, str) and value in texts:
                parameters[key] = _decoded(key, texts.pop(value))
    if texts:
        raise parse_error(f"members '{FILE_PREFIX}…' belong into 'parameters'")
    return document


def _cut(body: bytearray) -> tuple[bytes, dict[str, memoryview]]:
    """The JSON without the texts of files, and these by what stands in their places."""
    view, texts = memoryview(body), dict[str, memoryview]()
    pieces: list[memoryview | bytes] = []
    done = at = 0
    while (at := body.find(_START, at)) >= 0:
        found = _KEY.match(body, at) if not at or body[at - 1 : at] != b"\\" else None
        if found is None:
            at += 1
            continue
        end = body.find(b'"', found.end())
        if end < 0 or len(texts) >= FILES_LIMIT:
            raise parse_error("a string has no end" if end < 0 else f"more than {FILES_LIMIT} files")
        mark = secrets.token_hex(16)
        texts[mark] = view[found.end() : end]
        if body.find(b"\\", found.end(), end) >= 0:  # some writers of JSON escape the slash
            texts[mark] = memoryview(bytes(texts[mark]).replace(b"\\/", b"/"))
        pieces += view[done : found.end()], mark.encode()
        done = at = end
    return b"".join([*pieces, view[done:]]), texts


def _decoded(key: str, text: memoryview) -> bytes:
    made: list[bytes] = []
    try:
        for at in range(0, len(text), _STEP):
            piece = bytes(text[at : at + _STEP])
            if b"=" in piece and at + _STEP < len(text):
                raise binascii.Error("padding before its end")
            made.append(base64.b64decode(piece, validate=True))
    except binascii.Error as error:
        raise parse_error(f"'{key:.80}' is not base64: {error}") from None
    return b"".join(made)
