"""The settings of Triton's trace extension, of the server and of models that have some of their own. Pure.

They are kept and shown. Nothing is traced yet, so `trace` is not among the extensions of the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from mmsup.ipc.errors import CallerError

Json = dict[str, Any]  # a JSON object
Values = dict[str, tuple[str, ...]]
"""By key; only `trace_level` has other than one value."""
LEVELS: Final = ("OFF", "TIMESTAMPS", "TENSORS")
FILE: Final = "trace_file"
DEFAULTS: Final[Values] = {
    "trace_level": ("OFF",),
    "trace_rate": ("1000",),
    "trace_count": ("-1",),
    "log_frequency": ("0",),
    FILE: ("",),
}
NUMBER_LIMIT: Final = (1 << 31) - 1
_NUMBER: Final = re.compile(r"-?[0-9]{1,10}")
_LEAST: Final = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}


def trace_document(*layers: Mapping[str, tuple[str, ...]]) -> Json:
    """The settings in force: those of the last layer that has one, or the defaults. Values are strings."""
    shown: Values = dict(DEFAULTS)
    for layer in layers:
        shown |= layer
    return {key: list(value) if key == "trace_level" else value[0] for key, value in shown.items()}


def updated_trace(own: Mapping[str, tuple[str, ...]], changes: Mapping[str, Any]) -> Values:  # JSON from outside
    """`own` with these changes; null removes one. CallerError if one of them is not valid."""
    made = dict(own)
    for key, value in changes.items():
        if key == FILE:
            raise CallerError("bad_request", f"'{FILE}' cannot be set while the server runs")
        if key not in DEFAULTS:
            known = ", ".join(each for each in DEFAULTS if each != FILE)
            raise CallerError("bad_request", f"there is no trace setting '{key:.80}'; there are {known}")
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _levels(value) if key == "trace_level" else _number(key, value)
    return made


def _levels(value: Any) -> tuple[str, ...]:  # as above
    given: list[Any] = value if isinstance(value, list) else [value]
    if not given or not all(each in LEVELS for each in given):
        raise CallerError("bad_request", f"'trace_level' must be a list of {', '.join(LEVELS)}")
    levels = dict.fromkeys(given)
    return ("OFF",) if "OFF" in levels else tuple(levels)


def _number(key: str, value: Any) -> tuple[str, ...]:  # as above
    values: list[Any] = value if isinstance(value, list) else [value]
    given = values[0] if len(values) == 1 else None
    number = int(given) if isinstance(given, str) and _NUMBER.fullmatch(given) else given
    least = _LEAST[key]
    if type(number) is not int or not least <= number <= NUMBER_LIMIT:
        raise CallerError("bad_request", f"'{key}' must be a whole number from {least} to {NUMBER_LIMIT}")
    return (str(number),)
