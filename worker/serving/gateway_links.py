"""The gateways that this worker serves: what comes from each, what goes back, the memory it shares.

Each comes with a socket pair of its own, over which it sends requests and extents and whose end says that the link is
over. Where the server is configured for ZeroMQ, frames come and go over its one bound socket, and extents over the pair
all the same. A new brain attaches every gateway anew; gateways that know us drop the new pair, which is a link without
a word then.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.arena import Attached
from mmsup.ipc.messages.data import Extent, Release
from mmsup.ipc.messages.worker_control import Attach
from mmsup.ipc.transport.codec import unpack_frame
from mmsup.ipc.transport.control_channel import Closed, close_all
from mmsup.ipc.transport.data_channel import PairEnd
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.execution.engine import Pinning

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import WorkerEnd  # zmq is for those who use it

_MEMORY: Final = (Extent, Release)
log = logging.getLogger("mmsup.worker")


class Link:
    """One gateway, or one way to it."""

    def __init__(
        self, identity: bytes, pair: PairEnd, end: WorkerEnd | None = None, pinning: Pinning | None = None
    ) -> None:
        """`end`: the socket that frames go to, if not the pair. `pinning` hears of memory that comes and goes."""
        self.identity = identity
        self._pair = pair
        self._end = end
        self._pinning = pinning
        self._arena = Attached()

    def receive(self) -> list[Any] | None:
        """The records of the next packet but extents, None if none waits; Closed at the end, WireError for no frame."""
        received = self._pair.receive_with()
        if received is None:
            return None
        frame, descriptors = received
        try:
            records = unpack_frame(frame)
            return self._map(records, descriptors) if records and type(records[0]) in _MEMORY else records
        finally:
            if descriptors:
                close_all(descriptors)

    def _map(self, records: Iterable[Any], descriptors: list[int]) -> list[Any]:
        """Take extents in and out; what is left of the records."""
        left: list[Any] = []
        for record in records:
            if isinstance(record, Release):
                self._detach(record.segment)
            elif isinstance(record, Extent) and descriptors:
                self._attach(record, descriptors.pop(0))
            else:
                left.append(record)
        return left

    def _attach(self, extent: Extent, fd: int) -> None:
        try:
            self._arena.attach(extent.segment, fd, extent.size, writable=extent.writable)
        except (OSError, ValueError) as error:
            log.warning("a gateway's extent cannot be used: %s", error)
            return
        whole = self._arena.whole(extent.segment)
        if self._pinning is not None and whole is not None:
            self._pinning.attached(whole[0], writable=whole[1])

    def _detach(self, segment: int) -> None:
        whole = self._arena.whole(segment)
        if self._pinning is not None and whole is not None:
            self._pinning.detached(whole[0])
        self._arena.detach(segment)

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if it is not taken now; Closed if nobody is there."""
        return self._pair.send(frame) if self._end is None else self._end.send(self.identity, frame)

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes that a message named, None if it named what is not there; what the pair still holds is taken first."""
        view = self._arena.view(segment, offset, size, writable=writable)
        if view is None and self._end is not None:
            self._catch_up()
            view = self._arena.view(segment, offset, size, writable=writable)
        return view

    def _catch_up(self) -> None:
        """A frame may overtake the extent that it names, if the two take different ways."""
        try:
            while self.receive() is not None:
                pass
        except (Closed, WireError):
            return  # the loop will see it

    def close(self) -> None:
        """Let go of the pair and of its memory; mappings end with the last view of them."""
        for segment in self._arena.segments():
            self._detach(segment)
        self._pair.close()


class Links:
    """All links, and their pairs in the loop's poller."""

    def __init__(self, poller: select.poll, end: WorkerEnd | None, pinning: Pinning | None) -> None:
        self._poller = poller
        self._end = end
        self._pinning = pinning
        self._by_identity: dict[bytes, Link] = {}
        self.by_fd: dict[int, Link] = {}
        """The link whose pair a descriptor is."""

    def __iter__(self) -> Iterator[int]:
        """Their descriptors."""
        return iter(self.by_fd)

    def get(self, identity: bytes) -> Link | None:
        """The link of this identity, None if the brain has not attached it."""
        return self._by_identity.get(identity)

    def attach(self, message: Attach, fd: int) -> None:
        """The brain made a pair for a gateway."""
        link = Link(message.identity, PairEnd(fd), self._end, self._pinning)
        self._by_identity[message.identity] = self.by_fd[fd] = link
        self._poller.register(fd, select.POLLIN)

    def detach(self, fd: int) -> Link:
        """A link is over."""
        link = self.by_fd.pop(fd)
        self._poller.unregister(fd)
        del self._by_identity[link.identity]
        link.close()
        return link
