"""Whether memory holds another worker beside one that keeps its own until it exits later, or cannot be killed.

The new worker needs what the old one used when it had become ready; later growth (a leak) is not counted.
"""

from __future__ import annotations

from typing import Final

from mmsup.supervisor.instances.instance import Instance
from mmsup.supervisor.processes import usage

RESERVED_BYTES: Final = 64 << 20
"""Left to the rest of the machine beside both workers."""


def fits(needs_bytes: int, available_bytes: int) -> bool:
    return needs_bytes + RESERVED_BYTES <= available_bytes


class MemoryHeadroom:
    def available_bytes(self) -> int:
        return usage.machine_memory().available_bytes

    def required_bytes(self, instance: Instance) -> int | None:
        """What another worker like this one takes; None if that is unknown."""
        worker, process = instance.worker, instance.process
        if worker is None or process is None:
            return None
        return worker.recycling.initial_bytes or usage.footprint_bytes(worker.group, process.pid)

    def has_room_for(self, instance: Instance, reserved_bytes: int = 0) -> bool:
        """Whether another worker like this one fits beside what is reserved; true if its size is unknown."""
        needs = self.required_bytes(instance)
        return needs is None or fits(needs + reserved_bytes, self.available_bytes())
