"""The controller's checkpoint as the keeper holds it: texts by key, unread, for the controller that comes next.

A new controller gets all of them, in as many messages as that takes. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from mmsup.ipc.messages.keeper_control import CheckpointPart
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT

PART_BYTES: Final = MESSAGE_LIMIT - 1024
"""Of the entries of one message, as JSON."""
TOTAL_BYTES: Final = 64 << 20


class CheckpointStore:
    """Holds the entries within bounds."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = dict(entries)
        self._bytes = sum(_size(*each) for each in entries.items())

    def save(self, key: str, text: str) -> bool:
        """Hold this text under this key; an empty text removes the key. False beyond a bound: nothing has changed."""
        before = _size(key, self.entries[key]) if key in self.entries else 0
        after = _size(key, text) if text else 0
        if after > PART_BYTES or self._bytes - before + after > TOTAL_BYTES:
            return False
        self._bytes += after - before
        if text:
            self.entries[key] = text
        else:
            self.entries.pop(key, None)
        return True

    def parts(self) -> list[CheckpointPart]:
        """All entries, in messages that each fit into the channel."""
        parts: list[dict[str, str]] = []
        room = 0
        for key, text in self.entries.items():
            size = _size(key, text)
            if size > room:
                parts.append({})
                room = PART_BYTES
            parts[-1][key] = text
            room -= size
        return [CheckpointPart(each) for each in parts]


def _size(key: str, text: str) -> int:
    return len(json.dumps(key)) + len(json.dumps(text)) + 2
