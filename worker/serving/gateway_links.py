"""Links to the gateways that this worker serves: data messages both ways, and the memory that each gateway shares.

A gateway is attached with a socket pair, over which it sends requests and extents of shared memory, and whose end says
that the link is closed. Where the server is configured for ZeroMQ, frames go over its one bound socket, extents still
over the pair. A new controller attaches every gateway again; a gateway that is linked already closes the new pair,
which is a link without messages then.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mmsup.ipc.memory.arena import AttachedExtents
from mmsup.ipc.messages.data import AttachExtent, DetachExtent
from mmsup.ipc.messages.worker_control import AttachGateway
from mmsup.ipc.transport.codec import is_about_extents, read_records, unpack_records
from mmsup.ipc.transport.control_channel import ChannelClosed, close_fds
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.execution.engine import PinnedMemoryRegistry
from mmsup.worker.serving.shared_poller import SharedPoller

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # imports zmq, with its threads

log = logging.getLogger("mmsup.worker")


class GatewayLink:
    def __init__(
        self,
        identity: bytes,
        pair: DataChannel,
        zeromq: ZmqWorkerChannel | None = None,
        pinned_memory: PinnedMemoryRegistry | None = None,
    ) -> None:
        """`zeromq`: where frames go, if not over the pair. `pinned_memory` is notified of shared memory."""
        self.identity = identity
        self.send: Callable[[bytes], bool] = pair.send if zeromq is None else partial(zeromq.send, identity)
        """Send a frame; False if it is not accepted now; ChannelClosed if the other side is gone."""
        self._pair = pair
        self._zeromq = zeromq
        self._pinned_memory = pinned_memory
        self._arena = AttachedExtents()
        self.model_calls: ModelCalls | None = None
        """Gets what comes about calls beside requests."""

    def fileno(self) -> int:
        """Of the pair."""
        return self._pair.fileno()

    def receive(self) -> list[Any] | None:
        """The records of the next packet, not yet read; None if no packet waits. Extents that came with it are mapped;
        what other records say of extents is for `apply_extents`. ChannelClosed at the end, WireError for a malformed
        frame."""
        received = self._pair.receive_with_fds()
        if received is None:
            return None
        frame, fds = received
        if not fds:
            return unpack_records(frame)
        try:
            return self.apply_extents(unpack_records(frame), fds)
        finally:
            close_fds(fds)

    def apply_extents(self, records: list[Any], fds: list[int] | None = None) -> list[Any]:
        """Map and unmap extents; returns the other records. `fds`: those of extents to map, of which used ones are
        removed."""
        if not is_about_extents(records):
            return records
        others: list[Any] = []
        for record, message in zip(records, read_records(records), strict=True):
            if isinstance(message, DetachExtent):
                self._detach(message.segment)
            elif isinstance(message, AttachExtent) and fds:
                self._attach(message, fds.pop(0))
            else:
                others.append(record)
        return others

    def _attach(self, extent: AttachExtent, fd: int) -> None:
        try:
            self._arena.attach(extent.segment, fd, extent.size, writable=extent.writable)
        except (OSError, ValueError) as error:
            log.warning("a gateway's extent cannot be mapped: %s", error)
            return
        mapped = self._arena.extent(extent.segment)
        if self._pinned_memory is not None and mapped is not None:
            self._pinned_memory.register(mapped[0], writable=mapped[1])

    def _detach(self, segment: int) -> None:
        mapped = self._arena.extent(segment)
        if self._pinned_memory is not None and mapped is not None:
            self._pinned_memory.unregister(mapped[0])
        self._arena.detach(segment)

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes of shared memory that a message named; None if they are not mapped."""
        view = self._arena.view(segment, offset, size, writable=writable)
        if view is None and self._zeromq is not None:
            self._drain_pair()
            view = self._arena.view(segment, offset, size, writable=writable)
        return view

    def _drain_pair(self) -> None:
        """Apply extents that wait in the pair: a frame by ZeroMQ may overtake the extent that it names."""
        try:
            while (records := self.receive()) is not None:
                self.apply_extents(records)
        except (ChannelClosed, WireError):
            return  # the loop meets it again

    def close(self) -> None:
        """Close the pair and detach all extents; a mapping ends with the last view of it."""
        for segment in self._arena.segments():
            self._detach(segment)
        self._pair.close()


class DeferringLinks(Protocol):
    def take_deferred(self) -> list[tuple[GatewayLink, list[Any]]]:
        """Records that came while a run waited for another model."""
        ...


class GatewayLinks:
    def __init__(
        self,
        poller: select.poll | SharedPoller,
        zeromq: ZmqWorkerChannel | None,
        pinned_memory: PinnedMemoryRegistry | None,
    ) -> None:
        self._poller = poller
        self.zeromq = zeromq
        self._pinned_memory = pinned_memory
        self.by_identity: dict[bytes, GatewayLink] = {}
        self.by_fd: dict[int, GatewayLink] = {}
        """By the descriptor of the pair."""
        self.model_calls: ModelCalls | None = None
        self.calls: DeferringLinks | None = None
        """Of a model whose code may call others."""

    def attach(self, message: AttachGateway, fd: int) -> None:
        link = GatewayLink(message.identity, DataChannel(fd), self.zeromq, self._pinned_memory)
        link.model_calls = self.model_calls
        self.by_identity[message.identity] = self.by_fd[fd] = link
        self._poller.register(fd, select.POLLIN)

    def detach_all(self, on_detached: Callable[[GatewayLink], None]) -> None:
        """Close every link: what a gateway still sends goes to another worker."""
        for fd, link in list(self.by_fd.items()):
            self.detach(fd)
            on_detached(link)

    def detach(self, fd: int) -> None:
        link = self.by_fd.pop(fd)
        self._poller.unregister(fd)
        del self.by_identity[link.identity]
        link.close()
