"""The commands about what is held against requests and GPUs: poison lists (`quarantine`) and devices."""

from __future__ import annotations

from collections.abc import Mapping

from mmsup.supervisor.api.arguments import text_argument, unknown_model
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.resources.gpu_placement import GpuPlacement


class ResourceCommands:
    def __init__(self, model_set: ModelSet, poison_requests: PoisonRegistry, devices: GpuPlacement) -> None:
        self._model_set = model_set
        self._poison_requests = poison_requests
        self._devices = devices

    def commands(self) -> Mapping[str, Command]:
        return {
            "quarantine": self._quarantine,
            "quarantine_clear": self._quarantine_clear,
            "devices": self._list_devices,
            "devices_release": self._release_device,
        }

    async def _quarantine(self, arguments: Json, _send_line: SendLine) -> Json:
        return {"requests": self._poison_requests.rows(self._listed_model(arguments))}

    async def _quarantine_clear(self, arguments: Json, _send_line: SendLine) -> Json:
        name = self._listed_model(arguments)
        return {"model": name, "cleared": self._poison_requests.clear(name)}

    async def _list_devices(self, _arguments: Json, _send_line: SendLine) -> Json:
        return {"devices": self._devices.rows()}

    async def _release_device(self, arguments: Json, _send_line: SendLine) -> Json:
        return self._devices.release(text_argument(arguments, "device"))

    def _listed_model(self, arguments: Json) -> str:
        """The model whose list is meant; empty for all."""
        name = text_argument(arguments, "model", "")
        if name and self._model_set.model(name) is None and not self._poison_requests.has_list(name):
            raise unknown_model(name)
        return name
