"""The brain's side of its channel to the keeper: JSON records, and a beat from the loop that does the work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import FROM_KEEPER, Beat
from mmsup.ipc.transport.control_channel import Seqpacket
from mmsup.ipc.transport.dataclass_codec import from_json, to_json
from mmsup.supervisor.processes.message_channel import Peer

BEAT_S: Final = 1.0


class Parent:
    """The keeper. `hear` gets each message with its descriptors, which are the hearer's."""

    def __init__(self, channel: Seqpacket, lifeline: int, hear: Callable[[Any, list[int]], None]) -> None:
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lifeline, orphaned)
        self._lifeline = lifeline
        self._peer = Peer(channel, self._heard, orphaned)
        self._beat: asyncio.TimerHandle | None = None
        self._turn()

    def say(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message of TO_KEEPER."""
        self._peer.say(to_json(message), descriptors)

    def close(self) -> None:
        """No more beats, no more messages."""
        if self._beat is not None:
            self._beat.cancel()
        self._loop.remove_reader(self._lifeline)
        self._peer.close()

    def _heard(self, data: bytes, descriptors: list[int]) -> None:
        self._hear(from_json(data, FROM_KEEPER), descriptors)

    def _turn(self) -> None:
        self.say(Beat())
        self._beat = self._loop.call_later(BEAT_S, self._turn)


def orphaned() -> NoReturn:
    """The keeper is gone and takes everything with it."""
    os._exit(exit_codes.ORPHANED)
