"""The commands about what there is now: the server, its models, poison lists (`quarantine`) and devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.uploads import UploadedFiles
from mmsup.supervisor.api.arguments import flag_argument, model_argument, text_argument, unknown_model
from mmsup.supervisor.api.ensemble_commands import load_with_steps, unload_with_steps
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.api.status import StatusViews
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.resources.gpu_placement import GpuPlacement
from mmsup.supervisor.uploads.model_uploads import ModelUploads

MAX_TICKET_LENGTH: Final = 64
_LOAD_PARAMETERS: Final = frozenset({"config"})


class StartUpgrade(Protocol):
    async def __call__(self, ticket: str, on_progress: Callable[[str], None], *, force: bool) -> Json:
        """Start or join the upgrade of this ticket; its result, or MmsupError."""
        ...


class Commands:
    def __init__(
        self,
        views: StatusViews,
        model_set: ModelSet,
        loader: ModelLoader,
        uploads: ModelUploads,
        poison_requests: PoisonRegistry,
        devices: GpuPlacement,
        request_upgrade: StartUpgrade,
    ) -> None:
        self._views = views
        self._model_set = model_set
        self._loader = loader
        self._uploads = uploads
        self._poison_requests = poison_requests
        self._devices = devices
        self._request_upgrade = request_upgrade

    def by_name(self) -> Mapping[str, Command]:
        return {
            "status": self._status,
            "ps": self._ps,
            "upgrade": self._upgrade,
            "list": self._list,
            "show": self._show,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "quarantine": self._quarantine,
            "quarantine_clear": self._quarantine_clear,
            "devices": self._list_devices,
            "devices_release": self._release_device,
        }

    async def _status(self, _arguments: Json, _send_line: SendLine) -> Json:
        return self._views.status()

    async def _ps(self, _arguments: Json, _send_line: SendLine) -> Json:
        return self._views.ps()

    async def _upgrade(self, arguments: Json, send_line: SendLine) -> Json:
        ticket, force = text_argument(arguments, "ticket"), flag_argument(arguments, "force")
        return await self._request_upgrade(
            ticket[:MAX_TICKET_LENGTH], lambda text: send_line({"progress": text}), force=force
        )

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
        upload, on_progress = arguments.get("upload"), lambda text: send_line({"progress": text})
        if upload is None:
            return await load_with_steps(self._loader, self._model_set, name, config, on_progress)
        if not isinstance(upload, UploadedFiles):
            raise CallerError("bad_request", "files of a model are sent over HTTP or gRPC")
        return await self._uploads.load(name, config, upload, on_progress)

    async def _unload(self, arguments: Json, _send_line: SendLine) -> Any:  # JSON
        name, parameters = text_argument(arguments, "name"), arguments.get("parameters")
        if isinstance(parameters, dict) and flag_argument(parameters, "unload_dependents"):
            return await unload_with_steps(self._uploads.unload, self._model_set, name)
        return await self._uploads.unload(name)

    async def _quarantine(self, arguments: Json, _send_line: SendLine) -> Json:
        return {"requests": self._poison_requests.rows(self._listed_model(arguments))}

    async def _quarantine_clear(self, arguments: Json, _send_line: SendLine) -> Json:
        name = self._listed_model(arguments)
        return {"model": name, "cleared": self._poison_requests.clear(name)}

    async def _list_devices(self, arguments: Json, _send_line: SendLine) -> Json:
        rows = self._devices.rows()
        return {"devices": rows} | ({"why": self._devices.why_no_gpu()} if arguments.get("why") and not rows else {})

    async def _release_device(self, arguments: Json, _send_line: SendLine) -> Json:
        return self._devices.release(text_argument(arguments, "device"))

    def _listed_model(self, arguments: Json) -> str:
        """The model whose list is meant; empty for all."""
        name = text_argument(arguments, "model", "")
        if name and self._model_set.model(name) is None and not self._poison_requests.has_list(name):
            raise unknown_model(name)
        return name
