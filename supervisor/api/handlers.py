"""The commands of a running server by name, for the control socket and for clients of the gateways alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError

Json = dict[str, Any]  # one JSON object
SendLine = Callable[[Json], None]
"""Sends a line of progress; never waits."""
Command = Callable[[Json, SendLine], Awaitable[Any]]
"""Gets the arguments; the result is JSON."""

_log: Final = logging.getLogger(__name__)


class Handlers:
    def __init__(self, *groups: Mapping[str, Command]) -> None:
        self._commands = {name: command for group in groups for name, command in group.items()}

    async def handle(self, verb: str, arguments: Json, send_line: SendLine) -> Any:  # the result is JSON
        """Carry a command out; MmsupError if it is refused or fails."""
        command = self._commands.get(verb)
        if command is None:
            raise CallerError("bad_request", f"there is no verb '{verb:.40}'; known are {', '.join(self._commands)}")
        _log.debug("command %.120s", f"{verb} {arguments.get('name', '')}".rstrip())
        try:
            return await command(arguments, send_line)
        except (MmsupError, asyncio.CancelledError):
            raise
        except Exception as error:  # the outermost frame of a command: the server goes on, its log has the trace
            _log.exception("%s failed", verb)
            text = f"a fault of the server's own in '{verb}'; its log has the details"
            raise ServerError("internal", text) from error
