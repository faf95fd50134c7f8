"""A safetensors file: whether its header and its tensors are whole."""

from __future__ import annotations

import json
import os
import struct
from typing import Any, Final

from mmsup.supervisor.config.config_error import InvalidValue

HEADER_LIMIT_BYTES: Final = 100_000_000
"""As in the library."""
_LENGTH: Final = struct.Struct("<Q")


def check_file(path: str) -> None:
    """InvalidValue if the file is cut or no safetensors."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        if not 2 <= length <= HEADER_LIMIT_BYTES:
            raise InvalidValue("is no safetensors file")
        text = file.read(length)
    if len(text) < length:
        raise InvalidValue(f"is cut short: its header has {length} bytes, {len(text)} are there")
    data_bytes, there = _data_bytes(text), size - _LENGTH.size - length
    if there < data_bytes:
        raise InvalidValue(f"is cut short: its tensors have {data_bytes} bytes, {there} are there")


def _data_bytes(header: bytes) -> int:
    """Bytes of all tensors."""
    try:
        tensors: dict[str, Any] = json.loads(header)  # JSON; checked by its use
        return max([each["data_offsets"][1] for name, each in tensors.items() if name != "__metadata__"], default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise InvalidValue("is no safetensors file: its header cannot be read") from None
