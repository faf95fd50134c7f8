"""The arena of one link: both sides, grown on demand, off the event loop.

The worker is told of each extent over the link's own socket pair before any request can name it. What is not yet sent
over it may be overtaken: a request that names an extent follows it, and one that is released is named by none.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from mmsup.gateway.dispatch.link_memory_quota import MemoryQuota
from mmsup.ipc.errors import ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.arena import ArenaSide, Extent, Slot, extent_size
from mmsup.ipc.messages.data import AttachExtent, DetachExtent
from mmsup.ipc.transport.codec import pack_frame
from mmsup.ipc.transport.control_channel import ChannelClosed
from mmsup.ipc.transport.data_channel import DataChannel

IDLE_EXTENT_S: Final = 60.0
"""How long an extent stays without use: making one takes milliseconds, keeping it costs others their memory."""


EXIT_WAIT_S: Final = 1.0
"""From the end of a worker's socket to the kernel's word that it has ended; that takes milliseconds."""


class LinkMemory:
    """In and out side towards one worker life. Closed as a whole when the life ends."""

    def __init__(self, pair: DataChannel, quota: MemoryQuota, executor: Executor, reclaim: Callable[[], None]) -> None:
        self._channel = pair
        self._quota = quota
        self._executor = executor
        self._release_idle_memory = reclaim
        self._segments = itertools.count()
        self._grow_lock = asyncio.Lock()
        self._last_use: dict[int, tuple[int, float]] = {}
        """Of each extent: how often it had been used at the last look that found it used, and when that was."""
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
        """A slot for results of that size; none for a guess where no memory is left, since small results need none."""
        try:
            return await self.allocate(self.results, size) if size else None
        except ServerError:
            if self.closed or not is_guess:
                raise
            return None

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
            raise ServerError("no_buffer", f"the machine has no {size} bytes of memory left", retry_after_s=1) from None
        except asyncio.CancelledError:
            make.add_done_callback(lambda done: self._discard(done, size))
            raise
        try:
            if not self.closed and self._send_extent(extent):
                return side.add(extent)
        except ChannelClosed:
            self._drop(extent)
            await self._wait_for_exit()
        else:
            self._drop(extent)
        raise ServerError("no_buffer", "the worker went away while its buffer was made", retry_after_s=1)

    def _drop(self, extent: Extent) -> None:
        self._quota.release(extent.size)
        extent.close()

    async def _wait_for_exit(self) -> None:
        """The worker's socket has ended, and its life with it: whoever asked is to see that, and go to the next one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_WAIT_S):
                await self._closed_event.wait()

    def _discard(self, made: asyncio.Future[Extent], size: int) -> None:
        self._quota.release(size)
        if not made.cancelled() and made.exception() is None:
            made.result().close()

    def _send_extent(self, extent: Extent) -> bool:
        message = AttachExtent(extent.segment, extent.size, extent.writable_by_worker)
        failpoint("gateway.extent_send")
        return self._channel.send(pack_frame([message]), [extent.fd])

    def release_idle(self) -> None:
        """Give back every extent that no slot uses."""
        for side in (self.requests, self.results):
            for extent in [each for each in side if not each.allocator.used]:
                self._release(side, extent)

    def release_unused(self, now_s: float) -> None:
        """Give back every extent that nobody has used for IDLE_S, as far as looks of now and then can tell."""
        for side in (self.requests, self.results):
            for extent in list(side):
                taken, since_s = self._last_use.get(extent.segment, (-1, now_s))
                if extent.allocator.used or extent.allocator.allocations != taken:
                    self._last_use[extent.segment] = extent.allocator.allocations, now_s
                elif now_s - since_s >= IDLE_EXTENT_S:
                    self._release(side, extent)

    def _release(self, side: ArenaSide, extent: Extent) -> None:
        try:
            told = self._channel.send(pack_frame([DetachExtent(extent.segment)]))
        except ChannelClosed:
            return
        if told:
            side.remove(extent)
            self._quota.release(extent.size)
            self._last_use.pop(extent.segment, None)

    def close(self) -> None:
        """Drop everything; views still being written to a client keep their mapping alive."""
        self.closed = True
        self._closed_event.set()
        for side in (self.requests, self.results):
            self._quota.release(side.size_bytes)
            side.close()
        self._channel.close()
