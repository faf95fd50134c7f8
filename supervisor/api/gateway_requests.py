"""The commands that clients may give over HTTP: few of all, with results that fit into one message to their gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.messages.gateway_control import CommandReply, CommandRequest
from mmsup.ipc.messages.packed_result import pack
from mmsup.ipc.messages.uploads import UploadedFiles
from mmsup.ipc.transport.codec import encode
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.supervisor.api.handlers import Handlers

CLIENT_COMMANDS: Final = frozenset(
    {"load", "unload", "sleep", "wake", "index", "status", "log_settings", "trace_settings"}
)
GATEWAY_COMMANDS: Final = CLIENT_COMMANDS | {"wake_for_request"}
"""With what a gateway asks by itself."""
REPLY_LIMIT: Final = MESSAGE_LIMIT - 4096


async def answer(
    handlers: Handlers, control_mode: str, request: CommandRequest, send: Callable[[CommandReply], None]
) -> None:
    try:
        _check(request.command, control_mode)
        result = await handlers.handle(request.command, request.arguments, lambda _: None)
        reply = CommandReply(request.id, "", "", 0.0, result)
        if len(encode(reply)) > REPLY_LIMIT:
            reply = CommandReply(request.id, "", "", 0.0, pack(result))
        if len(encode(reply)) > REPLY_LIMIT:
            raise ServerError("internal", f"the answer to {request.command} is too long for one message")
    except MmsupError as error:
        reply = CommandReply(request.id, error.code, error.text, error.retry_after_s or 0.0, None, error.retryable)
    finally:
        upload = request.arguments.get("upload")
        if isinstance(upload, UploadedFiles):
            os.close(upload.fd)
    failpoint("brain.answer")
    send(reply)


def _check(command: str, control_mode: str) -> None:
    """CallerError if clients may not give it."""
    if command not in GATEWAY_COMMANDS:
        raise CallerError("forbidden", f"'{command:.40}' is not for clients")
    if control_mode == "poll" and command in ("load", "unload"):
        text = f"{command} is off while the server follows its repository (poll); `mmsup ctl` can do it"
        raise CallerError("forbidden", text)
