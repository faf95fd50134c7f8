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

from mmsup.ipc.memory.arena import AttachedExtents
from mmsup.ipc.messages.data import AttachExtent, DetachExtent
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.transport.codec import unpack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed, close_fds
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.execution.engine import PinnedMemoryUser

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # zmq is for those who use it

_EXTENT_MESSAGES: Final = (AttachExtent, DetachExtent)
log = logging.getLogger("mmsup.worker")


class GatewayLink:
    """One gateway, or one way to it."""

    def __init__(
        self,
        identity: bytes,
        pair: DataChannel,
        end: ZmqWorkerChannel | None = None,
        pinned_memory_user: PinnedMemoryUser | None = None,
    ) -> None:
        """`end`: the socket that frames go to, if not the pair. `pinning` hears of memory that comes and goes."""
        self.identity = identity
        self._pair = pair
        self._zeromq = end
        self._pinned_memory_user = pinned_memory_user
        self._arena = AttachedExtents()

    def receive(self) -> list[Any] | None:
        """The records of the next packet but extents, None if none waits; Closed at the end, WireError for no frame."""
        received = self._pair.receive_with_fds()
        if received is None:
            return None
        frame, descriptors = received
        try:
            records = unpack_frame(frame)
            return (
                self._apply_extents(records, descriptors)
                if records and type(records[0]) in _EXTENT_MESSAGES
                else records
            )
        finally:
            if descriptors:
                close_fds(descriptors)

    def _apply_extents(self, records: Iterable[Any], descriptors: list[int]) -> list[Any]:
        """Take extents in and out; what is left of the records."""
        left: list[Any] = []
        for record in records:
            if isinstance(record, DetachExtent):
                self._detach(record.segment)
            elif isinstance(record, AttachExtent) and descriptors:
                self._attach(record, descriptors.pop(0))
            else:
                left.append(record)
        return left

    def _attach(self, extent: AttachExtent, fd: int) -> None:
        try:
            self._arena.attach(extent.segment, fd, extent.size, writable=extent.writable)
        except (OSError, ValueError) as error:
            log.warning("a gateway's extent cannot be used: %s", error)
            return
        whole = self._arena.extent(extent.segment)
        if self._pinned_memory_user is not None and whole is not None:
            self._pinned_memory_user.attached(whole[0], writable=whole[1])

    def _detach(self, segment: int) -> None:
        whole = self._arena.extent(segment)
        if self._pinned_memory_user is not None and whole is not None:
            self._pinned_memory_user.detached(whole[0])
        self._arena.detach(segment)

    def send(self, frame: bytes) -> bool:
        """Send a frame; False if it is not taken now; Closed if nobody is there."""
        return self._pair.send(frame) if self._zeromq is None else self._zeromq.send(self.identity, frame)

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes that a message named, None if it named what is not there; what the pair still holds is taken first."""
        view = self._arena.view(segment, offset, size, writable=writable)
        if view is None and self._zeromq is not None:
            self._drain_pair()
            view = self._arena.view(segment, offset, size, writable=writable)
        return view

    def _drain_pair(self) -> None:
        """A frame may overtake the extent that it names, if the two take different ways."""
        try:
            while self.receive() is not None:
                pass
        except (ChannelClosed, WireError):
            return  # the loop will see it

    def close(self) -> None:
        """Let go of the pair and of its memory; mappings end with the last view of them."""
        for segment in self._arena.segments():
            self._detach(segment)
        self._pair.close()


class GatewayLinks:
    """All links, and their pairs in the loop's poller."""

    def __init__(self, poller: select.poll, end: ZmqWorkerChannel | None, pinning: PinnedMemoryUser | None) -> None:
        self._poller = poller
        self._zeromq = end
        self._pinned_memory_user = pinning
        self._by_identity: dict[bytes, GatewayLink] = {}
        self.by_fd: dict[int, GatewayLink] = {}
        """The link whose pair a descriptor is."""

    def __iter__(self) -> Iterator[int]:
        """Their descriptors."""
        return iter(self.by_fd)

    def get(self, identity: bytes) -> GatewayLink | None:
        """The link of this identity, None if the brain has not attached it."""
        return self._by_identity.get(identity)

    def attach(self, message: AttachGateway, fd: int) -> None:
        """The brain made a pair for a gateway."""
        link = GatewayLink(message.identity, DataChannel(fd), self._zeromq, self._pinned_memory_user)
        self._by_identity[message.identity] = self.by_fd[fd] = link
        self._poller.register(fd, select.POLLIN)

    def detach(self, fd: int) -> GatewayLink:
        """A link is over."""
        link = self.by_fd.pop(fd)
        self._poller.unregister(fd)
        del self._by_identity[link.identity]
        link.close()
        return link
