"""What clients of a gateway may ask of the brain: few of the verbs, and answers that fit into one message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import faultpoint
from mmsup.ipc.messages import gateway_control
from mmsup.ipc.transport.codec import encode
from mmsup.supervisor.api.handlers import OF_CLIENTS, Verbs
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.gateways.pool import ANSWER_LIMIT


class Clients:
    """All of them, whichever gateway they came to."""

    def __init__(self, verbs: Verbs, settings: Settings) -> None:
        self._verbs = verbs
        self._settings = settings

    async def answer(self, message: gateway_control.Ask, answer: Callable[[gateway_control.Answer], None]) -> None:
        """Do it, and say what came of it."""
        try:
            result = await self._do_for_client(message)
            said = gateway_control.Answer(message.id, "", "", 0.0, result)
            if len(encode(said)) > ANSWER_LIMIT:
                raise ServerError("internal", f"the answer to {message.verb} is too long for one message")
        except MmsupError as error:
            said = gateway_control.Answer(message.id, error.code, error.text, error.retry_after_s or 0.0, None)
        faultpoint("brain.answer")
        answer(said)

    async def _do_for_client(self, message: gateway_control.Ask) -> Any:  # JSON, by verb
        if message.verb not in OF_CLIENTS:
            raise CallerError("forbidden", f"'{message.verb:.40}' is not for clients")
        if self._settings.control_mode == "poll" and message.verb in ("load", "unload"):
            text = f"{message.verb} is off while the server follows its repository (poll); `mmsup ctl` can do it"
            raise CallerError("forbidden", text)
        return await self._verbs.do(message.verb, message.arguments, lambda _: None)
