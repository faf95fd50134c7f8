"""The route table: what the brain last said of each model. Pure.

A gateway keeps the last table while the brain is away. Which worker serves a version is not here but in `backend.py`:
it follows from the links that are up.
"""

from __future__ import annotations

import re
from typing import Final

from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.gateway_control import Route, VersionState

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION_NUMBER: Final = re.compile(r"[0-9]{1,19}")


class RouteTable:
    """Model name to Route."""

    def __init__(self) -> None:
        self._models: dict[str, Route] = {}
        self._defaults: dict[str, VersionState] = {}
        """Of those that are wanted, the version that serves a request without one."""
        self._received: set[str] = set()

    def put(self, route: Route) -> None:
        """A model as it is now."""
        self._models[route.name] = route
        self._received.add(route.name)
        self._defaults.pop(route.name, None)
        for each in route.versions:
            if route.wanted and each.version == route.default:
                self._defaults[route.name] = each

    def drop(self, name: str) -> None:
        """A model that is in no repository any more."""
        self._models.pop(name, None)
        self._defaults.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def begin_sync(self) -> None:
        """A brain starts to say everything anew."""
        self._received.clear()

    def end_sync(self) -> None:
        """It has said everything: what it did not name is gone."""
        for name in self._models.keys() - self._received:
            self.drop(name)

    def names(self) -> list[str]:
        """All models of the repositories, also those that do not serve."""
        return sorted(self._models)

    def model(self, name: str) -> Route:
        """The route of a model; CallerError `unknown_model`."""
        route = self._models.get(name)
        if route is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        return route

    def version(self, name: str, version: str) -> VersionState:
        """One version of a model, `""` being the default one; CallerError if it is not served."""
        if not version and (state := self._defaults.get(name)) is not None:
            return state
        route = self.model(name)
        if not route.wanted or not route.versions:
            raise CallerError(
                "unknown_model", f"Request for unknown model: '{name}' has no available versions", model=name
            )
        if version and not _VERSION_NUMBER.fullmatch(version):
            text = f"failed to get model version from specified version string '{version:.40}' for model '{name}'"
            raise CallerError("bad_version", text, model=name)
        wanted = str(int(version)) if version else route.default
        for each in route.versions:
            if each.version == wanted:
                return each
        text = f"Request for unknown model: '{name}' version {wanted} is not found"
        raise CallerError("unknown_version", text, model=name)
