"""The brain's side of its channel to the keeper: JSON records, and a beat from the loop that does the work."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import FROM_KEEPER, Heartbeat
from mmsup.ipc.transport.control_channel import ControlChannel
from mmsup.ipc.transport.dataclass_codec import from_json, to_json
from mmsup.supervisor.processes.message_channel import MessageChannel

HEARTBEAT_INTERVAL_S: Final = 1.0


class KeeperChannel:
    """The keeper. `hear` gets each message with its descriptors, which are the hearer's."""

    def __init__(self, channel: ControlChannel, lifeline: int, hear: Callable[[Any, list[int]], None]) -> None:
        self._on_message = hear
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lifeline, exit_orphaned)
        self._lifeline = lifeline
        self._channel = MessageChannel(channel, self._decode, exit_orphaned)
        self._heartbeat: asyncio.TimerHandle | None = None
        self._send_heartbeat()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send one message of TO_KEEPER."""
        self._channel.send(to_json(message), descriptors)

    def close(self) -> None:
        """No more beats, no more messages."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._loop.remove_reader(self._lifeline)
        self._channel.close()

    def _decode(self, data: bytes, descriptors: list[int]) -> None:
        self._on_message(from_json(data, FROM_KEEPER), descriptors)

    def _send_heartbeat(self) -> None:
        self.send(Heartbeat())
        self._heartbeat = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._send_heartbeat)


def exit_orphaned() -> NoReturn:
    """The keeper is gone and takes everything with it."""
    os._exit(exit_codes.KEEPER_LOST)
