"""Copies the server's events into the history, over the control socket; reconnects when the controller restarts."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from mmsup.ipc.paths import control_socket
from mmsup.supervisor.chaos.observe.history import History, ServerEvent

MAX_EVENTS: Final = 2000
LINE_LIMIT: Final = 4 << 20
RECONNECT_DELAY_S: Final = 0.05


class EventFollower:
    """Follows until it is cancelled. Events that arrive again after a reconnection are recorded once."""

    def __init__(self, runtime_dir: str, history: History) -> None:
        self._path = control_socket(runtime_dir)
        self._history = history
        self._seen: set[str] = set()

    async def follow(self) -> None:
        while True:
            try:
                await self._read_events(follow=True)
            except OSError:
                await asyncio.sleep(RECONNECT_DELAY_S)

    async def catch_up(self) -> None:
        async with asyncio.timeout(30.0):
            await self._read_events(follow=False)

    async def _read_events(self, *, follow: bool) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
        try:
            request = {"verb": "events", "arguments": {"count": MAX_EVENTS, "follow": follow}}
            writer.write(json.dumps(request).encode() + b"\n")
            while line := await reader.readline():
                message = json.loads(line)
                if "ok" in message:
                    for each in (message.get("result") or {}).get("events", []):
                        self._add(each)
                    return
                if "event" in message:
                    self._add(message["event"])
        finally:
            writer.close()

    def _add(self, event: object) -> None:
        assert isinstance(event, dict), "an event is an object"
        text = json.dumps(event, sort_keys=True)
        if text not in self._seen:
            self._seen.add(text)
            self._history.add(ServerEvent(self._history.now(), event))
