"""Memory that a gateway shares with one worker life: sealed, nameless, preallocated.

One arena per (gateway, worker generation), of two sides. The gateway is the only allocator of both.

    in   requests   gateway writes, worker reads    SHRINK | GROW | FUTURE_WRITE | SEAL
    out  results    worker writes, gateway reads    SHRINK | GROW | SEAL

A side is a list of extents, each a memfd; messages name bytes as (segment, offset). A worker can neither shrink
an extent (SIGBUS for us) nor change a request after it was sent (a retry would run on other inputs).

A slot, and who may touch it:

    state      owner                    next
    filling    the upload               sent (request goes out), free (client left, bad request)
    sent       the worker, read only    free (its Reply came, or the worker is dead)
    granted    the worker               draining (Reply names it), free (Reply does not, or the worker is dead)
    draining   the reply to the client  free (written, or the client left)

A client that leaves frees nothing that is `sent` or `granted`: the Reply or the death does. A worker frees nothing.
When a worker dies its arena is dropped as a whole; views still being written to a client keep their mapping alive.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.allocator import ALIGNMENT, Allocator, round_up

EXTENT_BYTES: Final = 16 << 20
RESERVE_BYTES: Final = 256 << 20
"""What an extent leaves to the rest of the machine."""
F_SEAL_FUTURE_WRITE: Final = 0x0010  # linux/fcntl.h; not in Python's fcntl
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SlotState(enum.Enum):
    """Who may touch a slot; see the table above."""

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
    """A piece of an extent while somebody uses it."""

    segment: int
    offset: int
    size: int
    view: memoryview
    state: SlotState

    def transition(self, state: SlotState) -> None:
        """One step of the table; any other is a bug."""
        assert state in NEXT[self.state], f"a slot cannot go from {self.state.value} to {state.value}"
        self.state = state


class Extent:
    """One memfd of an arena, mapped by the gateway that made it."""

    def __init__(self, segment: int, size: int, *, writable_by_worker: bool) -> None:
        """Make, fill, map and seal `size` bytes. Slow (0.3 ms a MiB): never on an event loop.

        MemoryError if the machine has no room; the caller has checked its own quota before, because past the
        limit of a memory cgroup this is a kill and no error.
        """
        self.segment = segment
        self.writable_by_worker = writable_by_worker
        self.allocator = Allocator(size)
        if size > available_bytes() - RESERVE_BYTES:
            raise MemoryError(f"no {size} bytes for an extent: the machine is short of memory")
        try:
            failpoint("ipc.extent_file")
            self.fd = os.memfd_create("mmsup-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise MemoryError(f"no file for an extent: {error.strerror}") from error
        try:
            failpoint("ipc.extent_fill")
            os.posix_fallocate(self.fd, 0, size)
            failpoint("ipc.extent_map")
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            self._map = mmap.mmap(self.fd, size, flags=flags)
            seals = _SEALS if writable_by_worker else _SEALS | F_SEAL_FUTURE_WRITE
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError as error:
            os.close(self.fd)
            raise MemoryError(f"no {size} bytes for an extent: {error.strerror}") from error
        self._view = memoryview(self._map)

    @property
    def size(self) -> int:
        """Bytes of the extent."""
        return self.allocator.size

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes of the extent, without a copy."""
        return self._view[offset : offset + size]

    def close(self) -> None:
        """Let go of the descriptor; the mapping lives as long as a view of it."""
        os.close(self.fd)


class ArenaSide:
    """All extents of one direction; which bytes of them are free."""

    def __init__(self, *, writable_by_worker: bool) -> None:
        self.writable_by_worker = writable_by_worker
        self._extents: dict[int, Extent] = {}
        self._initial_state = SlotState.GRANTED if writable_by_worker else SlotState.FILLING

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents.values())

    def add(self, extent: Extent) -> None:
        """A new extent, already known to the worker."""
        self._extents[extent.segment] = extent

    def remove(self, extent: Extent) -> None:
        """Drop an extent that no slot uses; the worker has been told."""
        assert not extent.allocator.used, "an extent in use is not dropped"
        del self._extents[extent.segment]
        extent.close()

    def allocate(self, size: int) -> Slot | None:
        """A slot of at least `size` bytes, or None when no extent has room."""
        for extent in self._extents.values():
            offset = extent.allocator.allocate(size)
            if offset is not None:
                return Slot(extent.segment, offset, size, extent.view(offset, size), self._initial_state)
        return None

    def free(self, slot: Slot) -> None:
        """A slot's last step. After `close` there is nothing left to give back to."""
        slot.transition(SlotState.FREE)
        extent = self._extents.get(slot.segment)
        if extent is not None:
            extent.allocator.free(slot.offset, slot.size)

    def view(self, segment: int, offset: int, size: int) -> memoryview | None:
        """Bytes that a message named, or None if it named what is not there."""
        extent = self._extents.get(segment)
        if extent is None or offset < 0 or size < 0 or offset + size > extent.size:
            return None
        return extent.view(offset, size)

    @property
    def size_bytes(self) -> int:
        """Memory held."""
        return sum(each.size for each in self._extents.values())

    @property
    def used_bytes(self) -> int:
        """Memory in slots."""
        return sum(each.allocator.used for each in self._extents.values())

    def close(self) -> None:
        """Drop everything, whoever held it."""
        for extent in self._extents.values():
            extent.close()
        self._extents.clear()


def available_bytes() -> int:
    """Memory that the machine can still give; fallocate on a memfd knows no ENOSPC, only the kernel killing us."""
    with open("/proc/meminfo", "rb") as meminfo:
        for line in meminfo:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("this kernel's meminfo has no MemAvailable")


def extent_size(wanted: int) -> int:
    """How large an extent to make for a slot of `wanted` bytes: the usual size, or just enough in whole pages."""
    return max(EXTENT_BYTES, -(-round_up(wanted) // mmap.PAGESIZE) * mmap.PAGESIZE)


def leading_pad(header_bytes: int) -> int:
    """Bytes to leave free before a body so that what follows its JSON header is aligned."""
    return -header_bytes % ALIGNMENT


class AttachedExtents:
    """A worker's view of the extents that one gateway sent it."""

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
        """An extent and whether it may be written to, None if it is not attached: for whoever registers it with a
        device, and must hear of it before it goes."""
        return self._views.get(segment)

    def segments(self) -> tuple[int, ...]:
        """All that are attached."""
        return tuple(self._views)

    def detach(self, segment: int) -> None:
        """Forget an extent; its mapping ends with the last view of it."""
        self._views.pop(segment, None)

    def view(self, segment: int, offset: int, size: int, *, writable: bool) -> memoryview | None:
        """Bytes of an extent, or None if the message named what is not there."""
        view, may_write = self._views.get(segment, (None, False))
        if view is None or may_write != writable or not 0 <= offset <= len(view) - size or size < 0:
            return None
        return view[offset : offset + size]
