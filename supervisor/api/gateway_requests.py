"""What clients of a gateway may ask of the brain: few of the verbs, and answers that fit into one message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.api.handlers import CLIENT_COMMANDS, Handlers
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gateways.pool import ANSWER_LIMIT


class GatewayRequests:
    """All of them, whichever gateway they came to."""

    def __init__(self, verbs: Handlers, settings: Settings) -> None:
        self._verbs = verbs
        self._settings = settings

    async def answer(self, message: CommandRequest, answer: Callable[[CommandReply], None]) -> None:
        """Do it, and say what came of it."""
        try:
            result = await self._do_for_client(message)
            said = CommandReply(message.id, "", "", 0.0, result)
            if len(encode(said)) > ANSWER_LIMIT:
                raise ServerError("internal", f"the answer to {message.command} is too long for one message")
        except MmsupError as error:
            said = CommandReply(message.id, error.code, error.text, error.retry_after_s or 0.0, None)
        failpoint("brain.answer")
        answer(said)

    async def _do_for_client(self, message: CommandRequest) -> Any:  # JSON, by verb
        if message.command not in CLIENT_COMMANDS:
            raise CallerError("forbidden", f"'{message.command:.40}' is not for clients")
        if self._settings.control_mode == "poll" and message.command in ("load", "unload"):
            text = f"{message.command} is off while the server follows its repository (poll); `mmsup ctl` can do it"
            raise CallerError("forbidden", text)
        return await self._verbs.handle(message.command, message.arguments, lambda _: None)
