"""The server's journal, followed over its control socket into the history; brains may come and go meanwhile."""

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
    """Follows until it is cancelled. What was there before is passed over, what is told again is not written again."""

    def __init__(self, runtime_dir: str, history: History) -> None:
        self._path = control_socket(runtime_dir)
        self._history = history
        self._seen: set[str] = set()

    async def follow(self) -> None:
        """Ask again whenever the connection ends."""
        while True:
            try:
                await self._read_events(follow=True)
            except OSError:
                await asyncio.sleep(RECONNECT_DELAY_S)

    async def catch_up(self) -> None:
        """All that is known now, once."""
        async with asyncio.timeout(30.0):
            await self._read_events(follow=False)

    async def _read_events(self, *, follow: bool) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
        try:
            question = {"verb": "events", "arguments": {"count": MAX_EVENTS, "follow": follow}}
            writer.write(json.dumps(question).encode() + b"\n")
            while line := await reader.readline():
                said = json.loads(line)
                if "ok" in said:
                    for each in (said.get("result") or {}).get("events", []):
                        self._add(each)
                    return
                if "event" in said:
                    self._add(said["event"])
        finally:
            writer.close()

    def _add(self, event: object) -> None:
        assert isinstance(event, dict), "an event is an object"
        name = json.dumps(event, sort_keys=True)
        if name not in self._seen:
            self._seen.add(name)
            self._history.add(ServerEvent(self._history.now(), event))
