"""What calls need of the loop that serves this worker: the requests that run, and a link to their gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mmsup.ipc.messages.calls import CallReply, GrantCall


class CallLink(Protocol):
    """The link to one gateway."""

    def fileno(self) -> int:
        """Readable when something has come."""
        ...

    def send(self, frame: bytes, /) -> bool:
        """False if it is not accepted now; ChannelClosed if the gateway is gone."""
        ...

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None: ...


@dataclass(frozen=True, slots=True)
class CallingRun:
    """The run that calls."""

    link: CallLink
    parents: tuple[int, ...]
    """Ids of its requests that came over this link."""
    is_shared: bool
    """It has requests of other links too."""
    priority: int
    """Of the first of them; 0: the default of whatever model is called."""
    blocks: bool = True
    """The worker does nothing else until the call has ended."""


class CallTransport(Protocol):
    model: str

    @property
    def poll_s(self) -> float:
        """How often a link has to be looked at that its descriptor does not report; 0: never."""
        ...

    def run(self) -> CallingRun | None:
        """None while no request runs."""
        ...

    def receive(self, link: CallLink) -> Sequence[GrantCall | CallReply]:
        """What has come about calls; all else is kept for the loop. ChannelClosed at the end."""
        ...

    def wait(self, link: CallLink, timeout_ms: int) -> None:
        """Sleep until something has come over the link."""
        ...

    def begin_wait(self) -> None:
        """The run waits for calls from now on, and its own limits do not count."""
        ...

    def beat(self) -> None:
        """The process is alive while it waits."""
        ...

    def end_wait(self) -> None: ...
