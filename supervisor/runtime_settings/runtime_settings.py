"""The settings in force that clients may change: they outlive a controller, and end with the server."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any, Final

from mmsup.ipc.log_settings import LogSettings
from mmsup.supervisor.runtime_settings.log_update import log_document, updated_log
from mmsup.supervisor.runtime_settings.trace_settings import trace_document, updated_trace

Json = dict[str, Any]  # a JSON object
SETTINGS_KEY: Final = "settings"
"""Of the record in the checkpoint."""


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    """All of them, in the controller's checkpoint. `trace` by key, `model_traces` by model and key."""

    log: LogSettings
    trace: dict[str, tuple[str, ...]]
    model_traces: dict[str, dict[str, tuple[str, ...]]]


class RuntimeSettings:
    def __init__(self, log: LogSettings) -> None:
        self.record = SettingsRecord(log, {}, {})
        self.on_change: Callable[[SettingsRecord], None] = lambda _: None

    def log(self, changes: Json) -> Json:
        """All log settings, after these changes."""
        if changes:
            self._set(replace(self.record, log=updated_log(self.record.log, changes)))
        return log_document(self.record.log)

    def trace(self, changes: Json) -> Json:
        """The trace settings of the server, after these changes."""
        if changes:
            self._set(replace(self.record, trace=updated_trace(self.record.trace, changes)))
        return trace_document(self.record.trace)

    def model_trace(self, model: str, changes: Json, models: Container[str]) -> Json:
        """The trace settings of one model, after these changes: its own before those of the server. `models`: all that
        there are; of others nothing is kept."""
        traces = self.record.model_traces
        if changes:
            own = updated_trace(traces.get(model, {}), changes)
            others = {name: each for name, each in traces.items() if name != model and name in models}
            self._set(replace(self.record, model_traces={**others, model: own} if own else others))
        return trace_document(self.record.trace, self.record.model_traces.get(model, {}))

    def _set(self, record: SettingsRecord) -> None:
        self.record = record
        self.on_change(record)
