"""Whether another worker has room beside one that keeps its memory: one that leaves later, or one that does not die.

The other needs what this one held when it had just become ready: what this one has grown by since, a fresh one has not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mmsup.supervisor.processes import usage

if TYPE_CHECKING:
    from mmsup.supervisor.instances.instance import Instance

RESERVED_BYTES: Final = 64 << 20
"""What the rest of the machine shall still have beside both."""


def fits(needs_bytes: int, available_bytes: int) -> bool:
    """Whether so much fits into what there is. Pure."""
    return needs_bytes + RESERVED_BYTES <= available_bytes


class MemoryHeadroom:
    """Of this machine."""

    def available_bytes(self) -> int:
        """What nobody has taken."""
        return usage.machine_memory().available_bytes

    def required_bytes(self, instance: Instance) -> int | None:
        """What another one like this takes; None where nobody knows."""
        tenure, life = instance.worker, instance.process
        if tenure is None or life is None:
            return None
        return tenure.initial_bytes or usage.footprint_bytes(tenure.group, life.pid)

    def has_room_for(self, instance: Instance, reserved_bytes: int = 0) -> bool:
        """Whether another one like this fits, when others have had what they were promised."""
        needs = self.required_bytes(instance)
        return needs is None or fits(needs + reserved_bytes, self.available_bytes())
