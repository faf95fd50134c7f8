"""The commands about the server as a whole: status, ps, upgrade."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from mmsup.supervisor.api.arguments import flag_argument, text_argument
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.api.status import StatusViews

MAX_TICKET_LENGTH: Final = 64


class UpgradeRequests(Protocol):
    async def request(self, ticket: str, on_progress: Callable[[str], None], *, force: bool) -> Json:
        """Start or join the upgrade of this ticket; its result, or MmsupError."""
        ...


class ServerCommands:
    def __init__(self, views: StatusViews, upgrades: UpgradeRequests) -> None:
        self._views = views
        self._upgrades = upgrades

    def commands(self) -> Mapping[str, Command]:
        return {"status": self._status, "ps": self._ps, "upgrade": self._upgrade}

    async def _status(self, _arguments: Json, _send_line: SendLine) -> Json:
        return self._views.status()

    async def _ps(self, _arguments: Json, _send_line: SendLine) -> Json:
        return self._views.ps()

    async def _upgrade(self, arguments: Json, send_line: SendLine) -> Json:
        ticket, force = text_argument(arguments, "ticket"), flag_argument(arguments, "force")
        on_progress: Callable[[str], None] = lambda text: send_line({"progress": text})  # noqa: E731 - typed
        return await self._upgrades.request(ticket[:MAX_TICKET_LENGTH], on_progress, force=force)
