"""`grpc.health.v1.Health`: whether the server is ready, once and as it changes.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from mmsup.gateway.dispatch.router import ServingStatus
from mmsup.gateway.rpc.calls.messages import INFERENCE, Message, message_class
from mmsup.ipc.errors import CallerError

SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3
SERVICES: Final = ("", INFERENCE)
_REPLY: Final = message_class("grpc.health.v1.HealthCheckResponse")


class HealthService:
    def __init__(self, status: ServingStatus) -> None:
        self._status = status
        self._watchers: dict[Callable[[Message], None], int] = {}
        """With the status that each was sent last."""

    def _current(self) -> int:
        return SERVING if self._status.readiness()[0] else NOT_SERVING

    def check(self, request: Message) -> Message:
        """CallerError for a service that is not known."""
        if request.service not in SERVICES:
            raise CallerError("not_found", f"service '{request.service:.200}' is not known")
        return _REPLY(status=self._current())

    def watch(self, request: Message, send: Callable[[Message], None]) -> Callable[[], None]:
        """Send the status now, and each time it changes until the function that is returned is called."""
        if request.service not in SERVICES:
            send(_REPLY(status=SERVICE_UNKNOWN))
            return lambda: None
        current = self._watchers[send] = self._current()
        send(_REPLY(status=current))
        return partial(self._forget, send)

    def _forget(self, send: Callable[[Message], None]) -> None:
        self._watchers.pop(send, None)

    def on_heartbeat(self) -> None:
        """Tell those who watch of a change."""
        current = self._current()
        for send, last in list(self._watchers.items()):
            if last != current:
                self._watchers[send] = current
                send(_REPLY(status=current))
