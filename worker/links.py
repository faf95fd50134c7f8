"""The gateways that this worker serves: their identities, and the memory they share with it.

Each comes with a socket pair of its own, over which it sends extents and whose end says that it is gone. The brain
may attach the same gateway again (a new brain says all anew), so one gateway may have several pairs: the newest that
holds a segment is meant, and the gateway is gone when the last pair has ended.
"""

from __future__ import annotations

import logging
import select

from mmsup.ipc.arena import Attached
from mmsup.ipc.codec import decode
from mmsup.ipc.messages import ON_LINK, Attach, Extent, Release
from mmsup.ipc.records import WireError
from mmsup.ipc.seqpacket import Closed, Seqpacket, close_all

log = logging.getLogger("mmsup.worker")


class Pair:
    """One socket pair, and the extents that came over it."""

    def __init__(self, channel: Seqpacket) -> None:
        self.channel = channel
        self._arena = Attached()

    def read(self) -> bool:
        """Take what has come; False if nothing will come any more."""
        try:
            while True:
                received = self.channel.receive()
                if received is None:
                    return True
                self._do(*received)
        except Closed:
            return False

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes of an extent, None if the message named what is not there."""
        return self._arena.view(segment, offset, size, writable=writable)

    def _do(self, data: bytes, descriptors: list[int]) -> None:
        try:
            match decode(data, ON_LINK):
                case Extent() as extent if len(descriptors) == 1:
                    fd = descriptors.pop()
                    self._arena.attach(extent.segment, fd, extent.size, writable=extent.writable)
                case Release() as release:
                    self._arena.detach(release.segment)
                case other:
                    log.warning("a gateway sent %s with %d descriptors", type(other).__name__, len(descriptors))
        except (WireError, OSError, ValueError) as error:
            log.warning("a gateway's extent cannot be used: %s", error)
        finally:
            close_all(descriptors)


class Link:
    """One gateway."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.pairs: list[Pair] = []

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes that a message named; what is on its way over a pair is taken first if need be."""
        pairs = self.pairs
        if len(pairs) == 1:
            view = pairs[0].view(segment, offset, size, writable=writable)
            if view is not None:
                return view
        # An ended pair's segments are not meant any more, and a new pair counts them anew: read all, newest first.
        alive = [pair for pair in pairs if pair.read()]
        for pair in reversed(alive):
            view = pair.view(segment, offset, size, writable=writable)
            if view is not None:
                return view
        return None


class Links:
    """All gateways, by identity, and their pairs in the loop's poller."""

    def __init__(self, poller: select.poll) -> None:
        self._poller = poller
        self._by_identity: dict[bytes, Link] = {}
        self._by_fd: dict[int, tuple[Link, Pair]] = {}

    def get(self, identity: bytes) -> Link | None:
        """The gateway of this identity, None if the brain has not attached it."""
        return self._by_identity.get(identity)

    def attach(self, message: Attach, fd: int) -> None:
        """The brain made a pair for this gateway."""
        link = self._by_identity.setdefault(message.identity, Link(message.identity))
        pair = Pair(Seqpacket.of_descriptor(fd))
        link.pairs.append(pair)
        self._by_fd[fd] = link, pair
        self._poller.register(fd, select.POLLIN)

    def knows(self, fd: int) -> bool:
        """Whether this descriptor is one of ours."""
        return fd in self._by_fd

    def read(self, fd: int) -> Link | None:
        """Take what has come over this descriptor; the gateway if that was the end of its last pair."""
        link, pair = self._by_fd[fd]
        if pair.read():
            return None
        self._poller.unregister(fd)
        del self._by_fd[fd]
        link.pairs.remove(pair)
        pair.channel.close()
        if link.pairs:
            return None
        del self._by_identity[link.identity]
        return link
