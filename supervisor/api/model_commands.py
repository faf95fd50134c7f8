"""The commands about models: list, show, index, load, unload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.api.arguments import flag_argument, model_argument, text_argument
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.api.status import StatusViews
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet

_LOAD_PARAMETERS: Final = frozenset({"config"})


class ModelCommands:
    def __init__(self, views: StatusViews, model_set: ModelSet, loader: ModelLoader) -> None:
        self._views = views
        self._model_set = model_set
        self._loader = loader

    def commands(self) -> Mapping[str, Command]:
        return {
            "list": self._list,
            "show": self._show,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
        }

    async def _list(self, _arguments: Json, _send_line: SendLine) -> Json:
        return self._views.overview()

    async def _show(self, arguments: Json, _send_line: SendLine) -> Json:
        return self._views.show(model_argument(arguments, self._model_set))

    async def _index(self, arguments: Json, _send_line: SendLine) -> list[Json]:
        return self._views.index(only_ready=flag_argument(arguments, "ready"))

    async def _load(self, arguments: Json, send_line: SendLine) -> Any:  # JSON
        name = text_argument(arguments, "name")
        parameters: Any = arguments.get("parameters") or {}  # JSON from outside, checked in the next line
        if not isinstance(parameters, dict) or not parameters.keys() <= _LOAD_PARAMETERS:
            raise CallerError("bad_request", f"failed to load '{name}': of parameters only 'config' is known")
        config = text_argument({**parameters, **arguments}, "config", "")
        return await self._loader.load(name, config, lambda text: send_line({"progress": text}))

    async def _unload(self, arguments: Json, _send_line: SendLine) -> Any:  # JSON
        return await self._loader.unload(text_argument(arguments, "name"))
