"""What can be asked of a running server: one function for each verb, the same for the control socket and for gateways.

Arguments are JSON from outside and checked here; a fault of theirs is a CallerError.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.supervisor.api.status import StatusViews
from mmsup.supervisor.controller.state_dir import StateDir
from mmsup.supervisor.gateways.poison_requests import PoisonRegistry
from mmsup.supervisor.models.loader import ModelLoader
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.observability.event_log import Event
from mmsup.supervisor.postmortem import explain
from mmsup.supervisor.resources.gpu_placement import GpuPlacement

Json = dict[str, Any]  # one JSON object
SendLine = Callable[[Json], None]
"""A line of progress; never waits."""
CrashReports = Callable[[str], Awaitable[list[Json]]]
"""What is on record of the deaths of a model's workers, the last one first."""

_log: Final = logging.getLogger(__name__)
DEFAULT_LINES: Final = 100
MAX_TICKET_LENGTH: Final = 64
CLIENT_COMMANDS: Final = frozenset({"load", "unload", "index", "status"})
"""Verbs that a gateway may ask for its clients."""
_LOAD_PARAMETERS: Final = frozenset({"config"})


class UpgradeRequests(Protocol):
    """Who carries an upgrade out."""

    async def request(self, ticket: str, say: Callable[[str], None], *, force: bool) -> Json:
        """Begin or join the upgrade of this ticket; its result, or MmsupError."""
        ...


@dataclass(frozen=True, slots=True)
class Holdings:
    """What is held against requests and GPUs."""

    quarantine: PoisonRegistry
    devices: GpuPlacement


class Handlers:
    """Everything that can be asked."""

    def __init__(
        self,
        answers: StatusViews,
        fleet: ModelSet,
        loads: ModelLoader,
        books: StateDir,
        bundles: CrashReports,
        holdings: Holdings,
        upgrades: UpgradeRequests,
    ) -> None:  # one for each thing that can be asked about
        self._answers = answers
        self._fleet = fleet
        self._loads = loads
        self._journal = books.event_log
        self._logbook = books.model_output
        self._bundles = bundles
        self._quarantine = holdings.quarantine
        self._devices = holdings.devices
        self._upgrades = upgrades
        self._verbs: dict[str, Callable[[Json, SendLine], Awaitable[Any]]] = {  # results are JSON, by verb
            "status": self._status,
            "list": self._list,
            "ps": self._ps,
            "show": self._show,
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "logs": self._logs,
            "events": self._events,
            "why": self._why,
            "quarantine": self._quarantined,
            "quarantine_clear": self._clear_quarantine,
            "devices": self._device_rows,
            "devices_release": self._release_device,
            "upgrade": self._upgrade,
        }

    async def handle(self, verb: str, arguments: Json, say: SendLine) -> Any:  # the result is JSON, by verb
        """Carry a verb out; MmsupError if it is refused or fails."""
        act = self._verbs.get(verb)
        if act is None:
            raise CallerError("bad_request", f"there is no verb '{verb:.40}'; known are {', '.join(self._verbs)}")
        try:
            return await act(arguments, say)
        except (MmsupError, asyncio.CancelledError):
            raise
        except Exception as error:  # the outermost loop of a question: the server goes on, the log has the trace
            _log.exception("%s failed", verb)
            text = f"a fault of the server's own in '{verb}'; its log has the details"
            raise ServerError("internal", text) from error

    async def _status(self, _arguments: Json, _say: SendLine) -> Json:
        return self._answers.status()

    async def _list(self, _arguments: Json, _say: SendLine) -> Json:
        return self._answers.overview()

    async def _ps(self, _arguments: Json, _say: SendLine) -> Json:
        return self._answers.ps()

    async def _show(self, arguments: Json, _say: SendLine) -> Json:
        return self._answers.show(self._model(arguments))

    async def _index(self, arguments: Json, _say: SendLine) -> list[Json]:
        return self._answers.index(only_ready=_flag(arguments, "ready"))

    async def _load(self, arguments: Json, say: SendLine) -> Any:  # JSON
        name = _text(arguments, "name")
        parameters: Any = arguments.get("parameters") or {}  # JSON from outside, checked in the next line
        if not isinstance(parameters, dict) or not parameters.keys() <= _LOAD_PARAMETERS:
            raise CallerError("bad_request", f"failed to load '{name}': of parameters only 'config' is known")
        config = _text({**parameters, **arguments}, "config", "")
        return await self._loads.load(name, config, lambda text: say({"progress": text}))

    async def _unload(self, arguments: Json, _say: SendLine) -> Any:  # JSON
        return await self._loads.unload(_text(arguments, "name"))

    async def _upgrade(self, arguments: Json, say: SendLine) -> Json:
        ticket, force = _text(arguments, "ticket"), _flag(arguments, "force")
        return await self._upgrades.request(
            ticket[:MAX_TICKET_LENGTH], lambda text: say({"progress": text}), force=force
        )

    async def _logs(self, arguments: Json, say: SendLine) -> Json:
        model = self._model(arguments)
        logbook = self._logbook(model.name)
        lines = logbook.last_lines(_count(arguments, "lines", DEFAULT_LINES))
        if not _flag(arguments, "follow"):
            return {"lines": lines}
        for line in lines:
            say({"progress": "", "line": line})
        return await _until_cancelled(logbook.subscribe(lambda line: say({"progress": "", "line": line})))

    async def _events(self, arguments: Json, say: SendLine) -> Json:
        name = _text(arguments, "model", "")
        if name and self._fleet.model(name) is None and not self._journal.last(1, name):
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        events = self._journal.last(_count(arguments, "count", DEFAULT_LINES), name)
        if not _flag(arguments, "follow"):
            return {"events": events}

        def tell(event: Event) -> None:
            if not name or event.get("model") == name:
                say({"progress": "", "event": event})

        for event in events:
            tell(event)
        return await _until_cancelled(self._journal.subscribe(tell))

    async def _why(self, arguments: Json, _say: SendLine) -> Json:
        name, place = _text(arguments, "name"), _count(arguments, "death", 1)
        bundles = await self._bundles(name)
        model = self._fleet.model(name) if bundles else self._model(arguments)
        state, reason = (str(model.state()), model.reason()) if model is not None else ("", "")
        if bundles and not 1 <= place <= len(bundles):
            text = f"of model '{name}' {len(bundles)} deaths are on record, the last one is 1"
            raise CallerError("bad_request", text, model=name)
        bundle = bundles[place - 1] if bundles else None
        since = explain.later_events(bundle, self._journal.last(model=name)) if bundle else []
        return {
            "model": name,
            "state": state,
            "reason": reason,
            "deaths": [explain.list_entry(each) for each in bundles],
            "sentences": explain.explain(bundle, since, state, reason)
            if bundle
            else explain.no_crash(name, state, reason),
            "since": since,
            "bundle": bundle,
        }

    async def _quarantined(self, arguments: Json, _say: SendLine) -> Json:
        return {"requests": self._quarantine.rows(self._name(arguments))}

    async def _clear_quarantine(self, arguments: Json, _say: SendLine) -> Json:
        name = self._name(arguments)
        return {"model": name, "cleared": self._quarantine.clear(name)}

    async def _device_rows(self, _arguments: Json, _say: SendLine) -> Json:
        return {"devices": self._devices.rows()}

    async def _release_device(self, arguments: Json, _say: SendLine) -> Json:
        return self._devices.release(_text(arguments, "device"))

    def _name(self, arguments: Json) -> str:
        """The model whose list is meant; empty for all."""
        name = _text(arguments, "model", "")
        if name and self._fleet.model(name) is None and not self._quarantine.has_list(name):
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        return name

    def _model(self, arguments: Json) -> Model:
        name = _text(arguments, "name" if "name" in arguments else "model")
        model = self._fleet.model(name)
        if model is None:
            raise CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
        return model


async def _until_cancelled(stop: Callable[[], None]) -> Json:
    """Following ends when the follower leaves."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        stop()
    raise AssertionError("nobody ends a follower's wait but its cancellation")


def _text(arguments: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = arguments.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise CallerError("bad_request", f"argument '{key}' must be a text")
    return value


def _count(arguments: Mapping[str, Any], key: str, default: int) -> int:
    value = arguments.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise CallerError("bad_request", f"argument '{key}' must be a number, 0 or more")
    return value


def _flag(arguments: Mapping[str, Any], key: str) -> bool:
    value = arguments.get(key) or False
    if not isinstance(value, bool):
        raise CallerError("bad_request", f"argument '{key}' must be true or false")
    return value
