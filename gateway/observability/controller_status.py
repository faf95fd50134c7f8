"""The controller's `status`, for what only the controller knows and /metrics shows: states, restarts, memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from mmsup.ipc.errors import MmsupError, ServerError
from mmsup.ipc.messages.uploads import pack_files

STATUS_WAIT_S: Final = 0.5
ANSWER_WAIT_S: Final = 10.0
STALE_KEY: Final = "old"
CallController = Callable[[str, dict[str, Any]], Awaitable[Any]]
"""Sends a command with its arguments to the controller and returns its result; all are JSON, by command."""


async def ask_controller(call_controller: CallController, command: str, arguments: dict[str, Any]) -> Any:  # as above
    """The result of a command that waits for no worker; ServerError if there is none within ANSWER_WAIT_S."""
    try:
        async with asyncio.timeout(ANSWER_WAIT_S):
            return await call_controller(command, arguments)
    except TimeoutError:
        raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=2) from None


async def change_model(
    call_controller: CallController,
    command: str,
    arguments: dict[str, Any],  # as above
    files: Mapping[str, bytes],
) -> None:
    """Load or unload a model, with files if there are any; returns when it is done."""
    if not files:
        await call_controller(command, arguments)
        return
    try:
        upload = await pack_files(files)
    except OSError as error:
        raise ServerError("insufficient_memory", f"there is no memory for the files: {error.strerror}") from None
    try:
        await call_controller(command, {**arguments, "upload": upload})
    finally:
        os.close(upload.fd)


class ControllerStatus:
    """The last `status`. While no controller answers, the previous one with the key `old`.

    Several gateways serve one scraper, and none may show older values than another one did, so no gateway caches it.
    """

    def __init__(self, call_controller: CallController) -> None:
        self._call_controller = call_controller
        self._last: dict[str, Any] = {}  # JSON of the status command
        self._queried_s = 0.0
        self._lock = asyncio.Lock()

    async def get(self) -> dict[str, Any]:  # JSON of the status command
        """The status; waits for the controller no longer than a scraper would."""
        called_s = time.monotonic()
        async with self._lock:
            if self._queried_s <= called_s:  # else it was queried while this call waited: many calls share one query
                self._queried_s = time.monotonic()
                await self._query()
        return self._last

    async def _query(self) -> None:
        try:
            async with asyncio.timeout(STATUS_WAIT_S):
                status = await self._call_controller("status", {})
        except (TimeoutError, MmsupError):
            self._last = {**self._last, STALE_KEY: True}
            return
        if isinstance(status, dict):
            self._last = status
