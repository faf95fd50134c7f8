"""How much arena memory one gateway may hold, over all its links.

Checked before any extent is made: past the limit of a memory cgroup an allocation is no error but a kill.
"""

from __future__ import annotations

from mmsup.ipc.errors import ServerError


class MemoryQuota:
    """A budget in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def fits(self, size: int) -> bool:
        """Whether that much more may be held."""
        return self.held_bytes + size <= self.limit_bytes

    def reserve(self, size: int) -> None:
        """Hold that much more; ServerError `no_buffer` if it may not be."""
        if not self.fits(size):
            text = (
                f"no buffer for {size} bytes: {self.held_bytes} of {self.limit_bytes} bytes of request memory are in "
                "use; try again, or raise arena_memory"
            )
            raise ServerError("no_buffer", text, retry_after_s=1)
        self.held_bytes += size

    def release(self, size: int) -> None:
        """That much is held no more."""
        self.held_bytes -= size
        assert self.held_bytes >= 0, "more arena memory was given back than taken"
