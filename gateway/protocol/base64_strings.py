"""Strings of BYTES tensors in base64, for bytes that are no text. Pure."""

from __future__ import annotations

import base64
from collections.abc import Iterable


def decoded(strings: Iterable[bytes]) -> list[bytes]:
    """ValueError if one of them is not base64: of the standard alphabet, with its padding, without line breaks."""
    return [base64.b64decode(each, validate=True) for each in strings]


def encoded(strings: Iterable[bytes]) -> list[str]:
    return [base64.b64encode(each).decode() for each in strings]
