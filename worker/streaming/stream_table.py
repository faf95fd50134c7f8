"""The streams that are open in a worker, with their places on its status page."""

from __future__ import annotations

from mmsup.ipc.memory.status_page import STREAM_PLACES, StatusPageWriter
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.pending_results import RunTimes, WorkerRequest
from mmsup.worker.streaming.open_stream import OpenStream


class StreamTable:
    def __init__(self, page: StatusPageWriter, limit: int) -> None:
        """`limit`: most streams at a time; the page has room for STREAM_PLACES."""
        self._page = page
        self._places = list(range(min(limit, STREAM_PLACES)))
        """Free ones."""
        self.open: dict[tuple[GatewayLink, int], OpenStream] = {}

    @property
    def is_full(self) -> bool:
        return not self._places

    def may_start(self, request: WorkerRequest) -> bool:
        """Whether it can be opened now: a request that runs alone waits for all others, and they for it."""
        if request.signature.runs_alone:
            return not self.open
        return not self.is_full and not any(each.request.signature.runs_alone for each in self.open.values())

    def add(self, request: WorkerRequest, times: RunTimes) -> OpenStream:
        stream = self.open[request.key] = OpenStream(request, self._places.pop(), times)
        self._page.set_stream(stream.place, request.message.id)
        return stream

    def remove(self, stream: OpenStream) -> bool:
        """False if it was removed before."""
        if self.open.pop(stream.request.key, None) is None:
            return False
        self._places.append(stream.place)
        self._page.set_stream(stream.place, 0)
        return True

    def of_link(self, link: GatewayLink) -> list[OpenStream]:
        return [each for each in self.open.values() if each.request.link is link]
