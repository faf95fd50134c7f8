"""Arena: shared memory between a gateway and one worker process, in sealed, preallocated memfds.

One arena per link, with two sides. The gateway allocates in both.

    requests   gateway writes, worker reads    SHRINK | GROW | FUTURE_WRITE | SEAL
    results    worker writes, gateway reads    SHRINK | GROW | SEAL

A side is a list of extents, each a memfd; messages name bytes as (segment, offset). The seals keep a worker from
shrinking an extent (SIGBUS in the gateway) and from changing a request after it was sent (a retry would get
other inputs).

A slot is one allocated range. Its states, and who may access it:

    state      owner                      next
    filling    the upload                 sent (request was sent), free (client left, bad request)
    sent       the worker, read only      free (its reply came, or the worker exited)
    granted    the worker                 draining (the reply names it), free (it does not, or the worker exited)
    draining   the response to a client   free (written, or the client left)

A client that leaves frees nothing that is `sent` or `granted`: the reply or the worker's exit does. A worker frees
nothing. After a worker's exit its arena is dropped as a whole; views being written to a client keep their mapping.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.allocator import Allocator, round_up
from mmsup.ipc.memory.available_memory import available_bytes, total_bytes

EXTENT_BYTES: Final = 16 << 20
RESERVE_BYTES: Final = 256 << 20
"""Available memory that must remain after an extent was made, or a sixteenth of all in a small container."""
RESERVED_FILES: Final = 32
"""Descriptors that extents leave free, for links to workers that start."""
F_SEAL_FUTURE_WRITE: Final = 0x0010  # linux/fcntl.h; not in Python's fcntl
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SlotState(enum.Enum):
    FILLING = "filling"
    SENT = "sent"
    GRANTED = "granted"
    DRAINING = "draining"
    FREE = "free"


NEXT: Final[dict[SlotState, frozenset[SlotState]]] = {
    SlotState.FILLING: frozenset({SlotState.SENT, SlotState.FREE}),
    SlotState.SENT: frozenset({SlotState.FREE}),
    SlotState.GRANTED: frozenset({SlotState.DRAINING, SlotState.FREE}),
    SlotState.DRAINING: frozenset({SlotState.FREE}),
    SlotState.FREE: frozenset(),
}


@dataclass(slots=True)
class Slot:
    """An allocated range of an extent."""

    segment: int
    offset: int
    size: int
    view: memoryview
    state: SlotState

    def transition(self, state: SlotState) -> None:
        """A transition of the table; any other is a bug."""
        assert state in NEXT[self.state], f"a slot cannot go from {self.state.value} to {state.value}"
        self.state = state


class Extent:
    """One memfd of an arena, mapped by the gateway."""

    def __init__(self, segment: int, size: int, *, writable_by_worker: bool) -> None:
        """Allocate, map and seal `size` bytes. Slow (0.3 ms per MiB): never on an event loop.

        MemoryError if the machine or a control group is short of memory: posix_fallocate on a memfd never fails with
        ENOSPC, and beyond the limit of a group the kernel kills the process instead of returning an error.
        """
        self.segment = segment
        self.writable_by_worker = writable_by_worker
        self.allocator = Allocator(size)
        if size > available_bytes() - min(RESERVE_BYTES, total_bytes() // 16):
            raise MemoryError(f"no {size} bytes for an extent: the machine or its control group is short of memory")
        try:
            failpoint("ipc.extent_file")
            self.fd = os.memfd_create("mmsup-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise MemoryError(f"no file for an extent: {error.strerror}") from error
        if self.fd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES:
            os.close(self.fd)  # the kernel gives the lowest number that is free
            raise MemoryError("no file for an extent: the limit of open files is near; raise `ulimit -n`")
        try:
            failpoint("ipc.extent_fill")
            os.posix_fallocate(self.fd, 0, size)
            failpoint("ipc.extent_map")
            mapping = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            seals = _SEALS if writable_by_worker else _SEALS | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            os.close(self.fd)
            raise MemoryError(f"no {size} bytes for an extent: {error.strerror}") from error
        self._view = memoryview(mapping)

    @property
    def size(self) -> int:
        return self.allocator.size

    def view(self, offset: int, size: int) -> memoryview:
        return self._view[offset : offset + size]

    def close(self) -> None:
        """Close the descriptor; the mapping lives as long as a view of it."""
        os.close(self.fd)


class ArenaSide:
    """The extents of one direction."""

    def __init__(self, *, writable_by_worker: bool) -> None:
        self.writable_by_worker = writable_by_worker
        self._extents: dict[int, Extent] = {}
        self._initial_state = SlotState.GRANTED if writable_by_worker else SlotState.FILLING

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents.values())

    def add(self, extent: Extent) -> None:
        """Add an extent that the worker has attached."""
        self._extents[extent.segment] = extent

    def remove(self, extent: Extent) -> None:
        """Remove an extent without slots; the worker has been told to detach it."""
        assert not extent.allocator.used, "an extent in use is not removed"
        del self._extents[extent.segment]
        extent.close()

    def allocate(self, size: int) -> Slot | None:
        """A slot of at least `size` bytes, or None if no extent has room."""
        for extent in self._extents.values():
            offset = extent.allocator.allocate(size)
            if offset is not None:
                return Slot(extent.segment, offset, size, extent.view(offset, size), self._initial_state)
        return None

    def free(self, slot: Slot) -> None:
        """Free a slot. After `close` only its state changes."""
        slot.transition(SlotState.FREE)
        extent = self._extents.get(slot.segment)
        if extent is not None:
            extent.allocator.free(slot.offset, slot.size)

    @property
    def size_bytes(self) -> int:
        return sum(each.size for each in self._extents.values())

    @property
    def used_bytes(self) -> int:
        return sum(each.allocator.used for each in self._extents.values())

    def close(self) -> None:
        for extent in self._extents.values():
            extent.close()
        self._extents.clear()


def extent_size(slot_bytes: int) -> int:
    """The size of an extent for a slot: the usual one, or just enough whole pages."""
    return max(EXTENT_BYTES, -(-round_up(slot_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE)


class AttachedExtents:
    """The extents of one gateway, as mapped by a worker."""

    def __init__(self) -> None:
        self._views: dict[int, tuple[memoryview, bool]] = {}

    def attach(self, segment: int, fd: int, size: int, *, writable: bool) -> None:
        """Map an extent and close its descriptor."""
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        try:
            self._views[segment] = (memoryview(mmap.mmap(fd, size, mmap.MAP_SHARED, protection)), writable)
        finally:
            os.close(fd)

    def extent(self, segment: int) -> tuple[memoryview, bool] | None:
        """An extent and whether it is writable, None if it is not attached; to register it with a device."""
        return self._views.get(segment)

    def segments(self) -> tuple[int, ...]:
        return tuple(self._views)

    def detach(self, segment: int) -> None:
        """Remove an extent; its mapping ends with the last view of it."""
        self._views.pop(segment, None)

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """The bytes that a message named, or None if there are none."""
        view, may_write = self._views.get(segment, (None, False))
        if view is None or may_write != writable or not 0 <= offset <= len(view) - size or size < 0:
            return None
        return view[offset : offset + size]
