"""The commands that show and change what may be set while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.api.arguments import model_argument
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.runtime_settings.runtime_settings import RuntimeSettings


class SettingsCommands:
    def __init__(self, settings: RuntimeSettings, model_set: ModelSet) -> None:
        self._settings = settings
        self._model_set = model_set

    def by_name(self) -> Mapping[str, Command]:
        return {"log_settings": self._log, "trace_settings": self._trace}

    async def _log(self, arguments: Json, _send_line: SendLine) -> Json:
        return self._settings.log(_changes(arguments))

    async def _trace(self, arguments: Json, _send_line: SendLine) -> Json:
        changes = _changes(arguments)
        if not arguments.get("name"):
            return self._settings.trace(changes)
        model = model_argument(arguments, self._model_set)
        return self._settings.model_trace(model.name, changes, self._model_set.models)


def _changes(arguments: Json) -> Json:
    changes: Any = arguments.get("settings") or {}  # JSON from outside, checked in the next line
    if not isinstance(changes, dict):
        raise CallerError("bad_request", "argument 'settings' must be an object")
    return cast("Json", changes)
