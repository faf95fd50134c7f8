"""What the prototype ran too: msgpack of its records. So it says how fast this machine is today.

The record is `(id, inputs[(name, dtype, shape, seg, off, n)], grants, deadline, params)`, thirteen a frame, packed by
one reused Packer and read by unpackb.
"""

from __future__ import annotations

import msgpack

from inside.best import MANY, BestTimes, Times

RECORDS = 13
REPEATS = 100
"""As many moments as the stages have: a factor of busy moments only would excuse everything."""
THEN_US = {"msgpack pack": 0.28, "msgpack unpack": 0.24}
"""For each record, on the machine and day of the plan."""


def measure(best: BestTimes) -> None:
    """Both ways once more."""
    packer = msgpack.Packer(autoreset=True)
    inputs = [("x", "FP32", (16,), 0, 4096, 64)]
    records: list[tuple[object, ...]] = [
        ((1 << 62) + place, inputs, [(1, 0, 64)], 1 << 60, {}) for place in range(RECORDS)
    ]
    frame = packer.pack(records)
    for _ in range(REPEATS):
        best.time("msgpack pack", lambda: packer.pack(records), requests=RECORDS)
        best.time("msgpack unpack", lambda: msgpack.unpackb(frame), requests=RECORDS)


def factor(us: Times) -> float:
    """How many times as long as then the same takes here."""
    return sum(us[stage, MANY] for stage in THEN_US) / sum(THEN_US.values())
