"""One request that is being answered: what makes its responses, how far its client is behind, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from mmsup.ipc.messages.stream_window import StreamWindow
from mmsup.worker.calls.caller import Caller
from mmsup.worker.execution.engine import Response
from mmsup.worker.execution.model_errors import ModelFailure
from mmsup.worker.execution.outputs import OutputBytes
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest


def caller_of(request: WorkerRequest, loop: asyncio.AbstractEventLoop | None = None) -> Caller:
    """Who calls other models while this request runs, in this loop if it awaits."""
    return Caller(request.link, request.message.id, request.signature.priority, loop)


class OpenStream:
    # fmt: off
    __slots__ = (
        "buffer", "closing_since_ns", "failure", "held", "iterator", "place", "request", "room", "silent_since_ns",
        "task", "times", "window",
    )
    # fmt: on

    def __init__(self, request: WorkerRequest, place: int, times: RunTimes) -> None:
        self.request = request
        self.place = place
        """In the table of the status page."""
        self.times = times
        """Of all its steps."""
        self.window = StreamWindow()
        self.buffer = request.message.output_buffer
        self.held: tuple[OutputBytes, ...] | None = None
        """A part that waits for a larger buffer."""
        self.iterator: Iterator[Response] | None = None
        """What is stepped; None if it awaits."""
        self.task: asyncio.Task[None] | None = None
        self.room: asyncio.Event | None = None
        """Set when `can_continue` may have become true; of one that awaits."""
        self.silent_since_ns = 0
        """Since when its model could give the next part, and has not; 0 while it is not to."""
        self.closing_since_ns = 0
        self.failure: ModelFailure | None = None
        """Why it ends."""

    @property
    def is_answered(self) -> bool:
        """Whether its last reply was sent, or waits for a buffer elsewhere: it was its only one."""
        return self.times.done_ns > 0

    @property
    def can_continue(self) -> bool:
        """Whether its next part may be made."""
        return self.held is None and self.window.has_room and not self.closing_since_ns
