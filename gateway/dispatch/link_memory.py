"""The memory that one link shares with its worker: extents for requests and for results, grown off the event loop.

The worker gets each extent's descriptor over the link's own socket pair before any request can name it. Records that
are not sent yet may be overtaken by that: a request that names an extent follows it, and no request names a released
one. The total over all links of the gateway is bounded by a quota.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from mmsup.ipc.errors import CallerError, ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.arena import ArenaSide, Extent, Slot, extent_size
from mmsup.ipc.memory.available_memory import total_bytes
from mmsup.ipc.messages.data import AttachExtent, DetachExtent
from mmsup.ipc.transport.codec import pack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import DataChannel

IDLE_EXTENT_S: Final = 60.0
"""How long an unused extent is kept: making one takes milliseconds, keeping it takes memory from other links."""
EXIT_WAIT_S: Final = 1.0
"""From the close of a worker's socket to the kernel's report of its exit, which takes milliseconds."""


class MemoryQuota:
    """How much shared memory a gateway may hold over all links, in bytes.

    Checked before an extent is made: beyond the limit of a memory cgroup an allocation is not an error but a kill.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def fits(self, size: int) -> bool:
        return self.held_bytes + size <= self.limit_bytes

    def reserve(self, size: int) -> None:
        """Hold `size` more bytes; ServerError `no_buffer` if they do not fit."""
        if not self.fits(size):
            text = f"no buffer for {size} bytes: {self.held_bytes} of {self.limit_bytes} bytes of request memory"
            raise ServerError("no_buffer", f"{text} are in use; try again, or raise arena_memory", retry_after_s=1)
        self.held_bytes += size

    def release(self, size: int) -> None:
        self.held_bytes -= size
        assert self.held_bytes >= 0, "more arena memory was released than reserved"


class LinkMemory:
    """The extents shared with one worker process. Closed as a whole when the link is closed."""

    def __init__(
        self, channel: DataChannel, quota: MemoryQuota, executor: Executor, release_idle_memory: Callable[[], None]
    ) -> None:
        """`release_idle_memory`: called where the quota is reached, for all links."""
        self._channel = channel
        self._quota = quota
        self._executor = executor
        self._release_idle_memory = release_idle_memory
        self._segments = itertools.count()
        self._grow_lock = asyncio.Lock()
        self._last_use: dict[int, tuple[int, float]] = {}
        """By extent: its count of allocations when it was last seen in use, and that time in seconds."""
        self.requests = ArenaSide(writable_by_worker=False)
        self.results = ArenaSide(writable_by_worker=True)
        self.closed = False
        self._closed_event = asyncio.Event()

    async def allocate(self, side: ArenaSide, size: int) -> Slot:
        """A slot of `size` bytes; ServerError `no_buffer` if there is no memory for it."""
        slot = side.allocate(size)
        if slot is not None:
            return slot
        async with self._grow_lock:
            slot = side.allocate(size)
            while slot is None:
                await self._grow(side, extent_size(size))
                slot = side.allocate(size)
        return slot

    async def allocate_output(self, size: int, *, is_guess: bool) -> Slot | None:
        """A slot for results of `size` bytes. Without memory for an estimated size, None: small results need none."""
        try:
            return await self.allocate(self.results, size) if size else None
        except ServerError:
            if self.closed or not is_guess:
                raise
            return None

    def _memory_error(self, side: ArenaSide, size: int) -> ServerError | CallerError:
        if side is not self.results and size > total_bytes():
            text = f"a request of {size} bytes is more than the memory of this server can ever hold: send it in parts"
            return CallerError("too_large", text)
        text = f"the machine or its container has no {size} bytes of memory left: send less, or try again later"
        return ServerError("no_buffer", text, retry_after_s=1)

    async def _grow(self, side: ArenaSide, size: int) -> None:
        if not self._quota.fits(size):
            self._release_idle_memory()
        self._quota.reserve(size)
        segment = next(self._segments)
        make = asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: Extent(segment, size, writable_by_worker=side.writable_by_worker)
        )
        try:
            extent = await asyncio.shield(make)
        except MemoryError:
            self._quota.release(size)
            raise self._memory_error(side, size) from None
        except asyncio.CancelledError:
            make.add_done_callback(lambda done: self._discard(done, size))
            raise
        try:
            if not self.closed and self._send_extent(extent):
                return side.add(extent)
        except ChannelClosed:
            self._drop(extent)
            with contextlib.suppress(TimeoutError):  # its exit follows; the caller shall see that and use the next one
                async with asyncio.timeout(EXIT_WAIT_S):
                    await self._closed_event.wait()
        else:
            self._drop(extent)
        raise ServerError("no_buffer", "the worker went away while its buffer was made", retry_after_s=1)

    def _drop(self, extent: Extent) -> None:
        self._quota.release(extent.size)
        extent.close()

    def _discard(self, made: asyncio.Future[Extent], size: int) -> None:
        self._quota.release(size)
        if not made.cancelled() and made.exception() is None:
            made.result().close()

    def _send_extent(self, extent: Extent) -> bool:
        message = AttachExtent(extent.segment, extent.size, extent.writable_by_worker)
        failpoint("gateway.extent_send")
        return self._channel.send(pack_frame([message]), [extent.fd])

    def release_idle(self) -> None:
        for side in (self.requests, self.results):
            for extent in [each for each in side if not each.allocator.used]:
                self._release(side, extent)

    def release_unused(self, now_s: float) -> None:
        """Release every extent that has not been used for IDLE_EXTENT_S, as far as periodic calls can tell."""
        for side in (self.requests, self.results):
            for extent in list(side):
                allocations, since_s = self._last_use.get(extent.segment, (-1, now_s))
                if extent.allocator.used or extent.allocator.allocations != allocations:
                    self._last_use[extent.segment] = extent.allocator.allocations, now_s
                elif now_s - since_s >= IDLE_EXTENT_S:
                    self._release(side, extent)

    def _release(self, side: ArenaSide, extent: Extent) -> None:
        try:
            sent = self._channel.send(pack_frame([DetachExtent(extent.segment)]))
        except ChannelClosed:
            return
        if sent:
            side.remove(extent)
            self._quota.release(extent.size)
            self._last_use.pop(extent.segment, None)

    def close(self) -> None:
        """Drop everything; views that are still being written to a client keep their mapping alive."""
        self.closed = True
        self._closed_event.set()
        for side in (self.requests, self.results):
            self._quota.release(side.size_bytes)
            side.close()
        self._channel.close()
