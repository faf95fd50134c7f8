"""The controller's side of its channel to the keeper: JSON records, and a heartbeat sent by the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.keeper_control import FROM_KEEPER, Heartbeat
from mmsup.ipc.transport.control_channel import ControlChannel, DescriptorsLost
from mmsup.ipc.transport.dataclass_codec import from_json, to_json
from mmsup.ipc.transport.message_channel import MessageChannel

HEARTBEAT_INTERVAL_S: Final = 1.0


class KeeperChannel:
    """`on_message` gets each message with its descriptors, which it then owns; without them if there was no room."""

    def __init__(self, channel: ControlChannel, lifeline: int, on_message: Callable[[Any, list[int]], None]) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lifeline, exit_orphaned)
        self._lifeline = lifeline
        self._channel = MessageChannel(channel, self._decode, exit_orphaned, self._on_lost)
        self._heartbeat: asyncio.TimerHandle | None = None
        self._send_heartbeat()

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        self._channel.send(to_json(message), descriptors)

    def close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._loop.remove_reader(self._lifeline)
        self._channel.close()

    def _decode(self, data: bytes, descriptors: list[int]) -> None:
        self._on_message(from_json(data, FROM_KEEPER), descriptors)

    def _on_lost(self, error: DescriptorsLost) -> None:
        self._decode(error.data, [])

    def _send_heartbeat(self) -> None:
        self.send(Heartbeat())
        self._heartbeat = self._loop.call_later(HEARTBEAT_INTERVAL_S, self._send_heartbeat)


def exit_orphaned() -> NoReturn:
    """The keeper is dead, and the server cannot live without it."""
    os._exit(exit_codes.KEEPER_LOST)
