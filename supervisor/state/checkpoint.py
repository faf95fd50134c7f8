"""Saves the controller's state with the keeper for the controller that comes next: a record per key, when it changes.

A record is a frozen dataclass. Its text is msgpack, compressed because specs repeat themselves, in base 64. Which
processes live is the keeper's knowledge and in no record. Times are CLOCK_MONOTONIC, which is the same for all
processes.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.transport.codec import decode, encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import WireError

TEXT_LIMIT: Final = MESSAGE_LIMIT - 4096
"""A record is saved in one message, with its key."""
_FASTEST: Final = 1


def to_text(record: object) -> str:
    return base64.b64encode(zlib.compress(encode(record), _FASTEST)).decode()


def from_text(text: str, kinds: Iterable[type[Any]]) -> Any:
    """The record, one of these kinds; WireError if it is of another version of the code."""
    try:
        return decode(zlib.decompress(base64.b64decode(text, validate=True)), kinds)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise WireError(f"not a record of a checkpoint: {type(error).__name__}") from error


class CheckpointWriter:
    """Sends what differs from what the keeper holds."""

    def __init__(
        self, send: Callable[[str, str], None], on_too_large: Callable[[str, int], None], saved: Mapping[str, object]
    ) -> None:
        """`send` gets key and text; `saved`: the records of the controller before. `on_too_large` gets key and length
        of a text that the next controller will not get; what was saved under that key before stays."""
        self._send = send
        self._on_too_large = on_too_large
        self._records = dict(saved)
        self._too_large: set[str] = set()

    @property
    def is_complete(self) -> bool:
        return not self._too_large

    def save(self, key: str, record: object | None) -> None:
        """Hold this record under this key from now on; None removes the key."""
        if self._records.get(key) == record:
            return
        failpoint("brain.remember")
        text = ""
        if record is None:
            del self._records[key]
        else:
            self._records[key] = record
            text = to_text(record)
        if len(text) <= TEXT_LIMIT:
            self._too_large.discard(key)
            self._send(key, text)
        elif key not in self._too_large:
            self._too_large.add(key)
            self._on_too_large(key, len(text))
