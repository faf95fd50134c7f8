"""Changes of the log settings as Triton's logging extension has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from mmsup.ipc.errors import CallerError
from mmsup.ipc.log_settings import LOG_FORMATS, LogSettings

Json = dict[str, Any]  # a JSON object
VERBOSE_LIMIT: Final = (1 << 31) - 1
_FIELDS: Final = {
    "log_info": "info",
    "log_warning": "warning",
    "log_error": "error",
    "log_verbose_level": "verbose_level",
    "log_format": "format",
}
"""Key of the protocol to field."""
LOG_FILE: Final = "log_file"


def log_document(settings: LogSettings) -> Json:
    """All settings, with `log_file`: empty, since lines go to standard error."""
    shown = {key: getattr(settings, name) for key, name in _FIELDS.items()}
    return {LOG_FILE: "", **shown}


def updated_log(settings: LogSettings, changes: Mapping[str, Any]) -> LogSettings:  # values: JSON from outside
    """CallerError, and nothing has changed, if one of the changes is not valid."""
    return replace(settings, **{_field(key): _checked(key, value) for key, value in changes.items()})


def _field(key: str) -> str:
    if key == LOG_FILE:
        raise CallerError("bad_request", f"'{LOG_FILE}' cannot be set while the server runs: lines go to its output")
    if key not in _FIELDS:
        raise CallerError("bad_request", f"there is no log setting '{key:.80}'; there are {', '.join(_FIELDS)}")
    return _FIELDS[key]


def _checked(key: str, value: Any) -> Any:  # JSON from outside
    match _FIELDS[key]:
        case "format":
            if value not in LOG_FORMATS:
                raise CallerError("bad_request", f"'{key}' must be one of {', '.join(LOG_FORMATS)}")
        case "verbose_level":
            if type(value) is not int or not 0 <= value <= VERBOSE_LIMIT:
                raise CallerError("bad_request", f"'{key}' must be a whole number from 0 to {VERBOSE_LIMIT}")
        case _:
            if not isinstance(value, bool):
                raise CallerError("bad_request", f"'{key}' must be true or false")
    return value
