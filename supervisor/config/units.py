"""Sizes (`512MiB`) and durations (`30s`) as people write them."""

from __future__ import annotations

import re
from typing import Final

from mmsup.supervisor.config.config_error import InvalidValue, displayed

SIZE_UNITS: Final = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
DURATION_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
SIZE_LIMIT: Final = (1 << 63) - 1
"""What the kernel's own counters hold."""
DURATION_LIMIT_S: Final = 366 * 86400.0

# ASCII digits only, and a bounded number of them: `int` would take any script's digits, and any length.
_QUANTITY: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", re.ASCII)


def size(raw: object) -> int:
    """Bytes: `512MiB`, `1.5GiB`, `64kB`, or a number of bytes. Wrong for anything else, `4G` included: 10^9 or 2^30?"""
    amount = _amount(raw, SIZE_UNITS)
    if amount is None:
        raise InvalidValue(f"{displayed(raw)} is not a size; one is 512MiB or 4GiB")
    if amount != int(amount):
        raise InvalidValue(f"{displayed(raw)} is not a whole number of bytes")
    if amount > SIZE_LIMIT:
        raise InvalidValue(f"{displayed(raw)} is more than any machine has")
    return int(amount)


def duration(raw: object) -> float:
    """Seconds: `30s`, `500ms`, `5min`, `2h`, or a number of seconds. Wrong for anything else."""
    amount = _amount(raw, DURATION_UNITS)
    if amount is None:
        raise InvalidValue(f"{displayed(raw)} is not a duration; one is 30s, 500ms or 5min")
    if amount > DURATION_LIMIT_S:
        raise InvalidValue(f"{displayed(raw)} is more than a year")
    return float(amount)


def size_text(size_bytes: int) -> str:
    """A number of bytes for people: the largest unit that leaves at most one digit after the point."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= SIZE_UNITS[unit]:
            return f"{size_bytes / SIZE_UNITS[unit]:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}B"


def _amount(raw: object, units: dict[str, int] | dict[str, float]) -> int | float | None:
    if isinstance(raw, bool):
        return None
    if isinstance(raw, (int, float)):
        return raw if 0 <= raw < float("inf") else None
    if not isinstance(raw, str):
        return None
    found = _QUANTITY.fullmatch(raw.strip())
    if found is None or found[2] not in units:
        return None
    number = float(found[1]) if "." in found[1] else int(found[1])
    return number * units[found[2]]
