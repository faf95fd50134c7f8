"""The route table: the state of every model and version as the controller last sent it. Pure.

A gateway keeps the last table while no controller runs. Which workers serve a version is kept in link_table.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from mmsup.ipc.errors import CallerError
from mmsup.ipc.messages.gateway_control import Route, VersionState
from mmsup.ipc.specs import ENSEMBLE, ModelSpec

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
READY: Final = "ready"
_VERSION_NUMBER: Final = re.compile(r"[0-9]{1,19}")


class RouteTable:
    def __init__(self, on_change: Callable[[str], None] = lambda _: None) -> None:
        """`on_change` is called with each model whose route is another one now."""
        self._on_change = on_change
        self._models: dict[str, Route] = {}
        self.defaults: dict[str, VersionState] = {}
        """The default version of each model that is to be served and has workers of its own."""
        self._received: set[str] = set()

    def put(self, route: Route) -> None:
        self._models[route.name] = route
        self._received.add(route.name)
        self.defaults.pop(route.name, None)
        for each in route.versions:
            is_ensemble = each.spec is not None and each.spec.engine == ENSEMBLE
            if route.wanted and each.version == route.default and not is_ensemble:
                self.defaults[route.name] = each
        self._on_change(route.name)

    def drop(self, name: str) -> None:
        self._models.pop(name, None)
        self.defaults.pop(name, None)
        self._on_change(name)

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def begin_sync(self) -> None:
        """A new controller starts to send all routes."""
        self._received.clear()

    def end_sync(self) -> None:
        """The controller has sent all routes: drop the models that it did not name."""
        for name in self._models.keys() - self._received:
            self.drop(name)

    def names(self) -> list[str]:
        """All models in the repositories, including those that are not served."""
        return sorted(self._models)

    def model(self, name: str) -> Route:
        """The route of a model; CallerError `unknown_model`."""
        route = self._models.get(name)
        if route is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        return route

    def version(self, name: str, version: str) -> VersionState:
        """One version of a model, `""` being the default version; CallerError if it is not served."""
        if not version and (state := self.defaults.get(name)) is not None:
            return state
        route = self.model(name)
        if not route.wanted or not route.versions:
            text = f"Request for unknown model: '{name}' has no available versions"
            raise CallerError("unknown_model", text, model=name)
        if version and not _VERSION_NUMBER.fullmatch(version):
            text = f"failed to get model version from specified version string '{version:.40}' for model '{name}'"
            raise CallerError("bad_version", text, model=name)
        number = str(int(version)) if version else route.default
        for each in route.versions:
            if each.version == number:
                return each if each.spec is None or not each.spec.steps else self._with_steps(each, each.spec)
        text = f"Request for unknown model: '{name}' version {number} is not found"
        raise CallerError("unknown_version", text, model=name)

    def is_asleep(self, name: str) -> bool:
        """Whether a request to its default version would have it loaded from sleep."""
        state = self.defaults.get(name)
        return state is not None and state.wake_wait_s > 0

    def _with_steps(self, state: VersionState, spec: ModelSpec) -> VersionState:
        """The state of an ensemble: not ready while one of its steps is not."""
        for step in spec.steps:
            which = f"step '{step.model}' of ensemble '{spec.name}'"
            try:
                found = self.version(step.model, step.version)
            except CallerError as error:
                return replace(state, state="failed", code="model_failed", reason=f"{which}: {error.text}")
            if found.state != READY and not found.wake_wait_s:
                reason = f"{which} is {found.state}{f': {found.reason}' if found.reason else ''}"
                return replace(state, state=found.state, code=found.code or "model_loading", reason=reason)
        return state
