"""The commands that put models to sleep and load them from sleep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsup.supervisor.api.arguments import text_argument
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.on_demand.sleeper import Sleeper
from mmsup.supervisor.on_demand.waker import Waker


class OnDemandCommands:
    def __init__(self, waker: Waker, sleeper: Sleeper) -> None:
        self._waker = waker
        self._sleeper = sleeper

    def by_name(self) -> Mapping[str, Command]:
        return {"sleep": self._sleep, "wake": self._wake, "wake_for_request": self._wake_for_request}

    async def _sleep(self, arguments: Json, _send_line: SendLine) -> Any:  # JSON
        return await self._sleeper.sleep(text_argument(arguments, "name"))

    async def _wake(self, arguments: Json, send_line: SendLine) -> Any:  # JSON
        name = text_argument(arguments, "name")
        return await self._waker.wake(name, lambda text: send_line({"progress": text}))

    async def _wake_for_request(self, arguments: Json, _send_line: SendLine) -> Any:  # JSON
        return await self._waker.wake_for_request(text_argument(arguments, "name"))
