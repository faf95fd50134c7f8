"""Sizes (`512MiB`) and durations (`30s`) as people write and read them."""

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
"""Largest value of the kernel's own counters."""
DURATION_LIMIT_S: Final = 366 * 86400.0
_AGE_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"))

# ASCII digits only, and a bounded number of them: `int` accepts digits of any script, and any length.
_QUANTITY: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]{0,3})", re.ASCII)


def size(raw: object) -> int:
    """Bytes: `512MiB`, `1.5GiB`, `64kB`, or a number of bytes. InvalidValue for all else, also the ambiguous `4G`."""
    amount = _amount(raw, SIZE_UNITS)
    if amount is None:
        raise InvalidValue(f"{displayed(raw)} is not a size; one is 512MiB or 4GiB")
    if amount != int(amount):
        raise InvalidValue(f"{displayed(raw)} is not a whole number of bytes")
    if amount > SIZE_LIMIT:
        raise InvalidValue(f"{displayed(raw)} is more than any machine has")
    return int(amount)


def duration(raw: object) -> float:
    """Seconds: `30s`, `500ms`, `5min`, `2h`, or a number of seconds. InvalidValue for all else."""
    amount = _amount(raw, DURATION_UNITS)
    if amount is None:
        raise InvalidValue(f"{displayed(raw)} is not a duration; one is 30s, 500ms or 5min")
    if amount > DURATION_LIMIT_S:
        raise InvalidValue(f"{displayed(raw)} is more than a year")
    return float(amount)


def size_text(size_bytes: int) -> str:
    """A number of bytes in the largest unit that fits, with at most one decimal: `1.5GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= SIZE_UNITS[unit]:
            return f"{size_bytes / SIZE_UNITS[unit]:.1f}".removesuffix(".0") + unit
    return f"{size_bytes}B"


def age(seconds: float | None) -> str:
    """A duration in at most two units: `0.4s`, `12s`, `3m 20s`, `2h 5m`, `4d 1h`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for at, (length, unit) in enumerate(_AGE_UNITS):
        if whole >= length:
            shorter, name = _AGE_UNITS[at + 1] if at + 1 < len(_AGE_UNITS) else (1, "s")
            return f"{whole // length}{unit} {whole % length // shorter}{name}"
    return f"{whole}s"


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
