"""The commands about what has happened: logs of models, events, and why workers died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.api.arguments import count_argument, flag_argument, model_argument, text_argument, unknown_model
from mmsup.supervisor.api.ensemble_views import with_steps
from mmsup.supervisor.api.handlers import Command, Json, SendLine
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet
from mmsup.supervisor.observability.event_log import Event, EventLog
from mmsup.supervisor.observability.model_output import GATEWAY_OUTPUT, ModelOutput
from mmsup.supervisor.postmortem import explain

DEFAULT_LINES: Final = 100
CrashReports = Callable[[str], Awaitable[list[Json]]]
"""The reports on record of a model's crashes, the last one first."""


class HistoryCommands:
    def __init__(
        self,
        model_set: ModelSet,
        event_log: EventLog,
        model_output: Callable[[str], ModelOutput],
        crash_reports: CrashReports,
    ) -> None:
        self._model_set = model_set
        self._event_log = event_log
        self._model_output = model_output
        self._crash_reports = crash_reports

    def by_name(self) -> Mapping[str, Command]:
        return {"logs": self._logs, "events": self._events, "why": self._why}

    async def _logs(self, arguments: Json, send_line: SendLine) -> Json:
        output = self._model_output(self._output_name(arguments))
        lines = output.last_lines(count_argument(arguments, "lines", DEFAULT_LINES))
        if not flag_argument(arguments, "follow"):
            return {"lines": lines}
        for line in lines:
            send_line({"progress": "", "line": line})
        return await _until_cancelled(output.subscribe(lambda line: send_line({"progress": "", "line": line})))

    def _output_name(self, arguments: Json) -> str:
        name = text_argument(arguments, "name" if "name" in arguments else "model")
        if name == GATEWAY_OUTPUT:
            return name
        if name.startswith("_"):
            text = f"'{name}' has no log: name a model, or {GATEWAY_OUTPUT}; all else is on the output of `mmsup serve`"
            raise CallerError("unknown_model", text)
        return model_argument(arguments, self._model_set).name

    async def _events(self, arguments: Json, send_line: SendLine) -> Json:
        name = text_argument(arguments, "model", "")
        if name and self._model_set.model(name) is None and not self._event_log.last(1, name):
            raise unknown_model(name)
        events = self._event_log.last(count_argument(arguments, "count", DEFAULT_LINES), name)
        if not flag_argument(arguments, "follow"):
            return {"events": events}

        def send_event(event: Event) -> None:
            if not name or event.get("model") == name:
                send_line({"progress": "", "event": event})

        for event in events:
            send_event(event)
        return await _until_cancelled(self._event_log.subscribe(send_event))

    async def _why(self, arguments: Json, _send_line: SendLine) -> Json:
        name, number = text_argument(arguments, "name"), count_argument(arguments, "death", 1)
        reports = await self._crash_reports(name)
        model = self._model_set.model(name) if reports else model_argument(arguments, self._model_set)
        state, reason = self._state_now(model) if model is not None else ("", "")
        if reports and not 1 <= number <= len(reports):
            text = f"of model '{name}' {len(reports)} deaths are on record, the last one is 1"
            raise CallerError("bad_request", text, model=name)
        report = reports[number - 1] if reports else None
        events = self._event_log.last(model=name)
        later = explain.later_events(report, events) if report else []
        known = explain.explain(report, later, state, reason) if report else explain.no_crash(name, state, reason)
        return {
            "model": name,
            "state": state,
            "reason": reason,
            "deaths": [explain.list_entry(each) for each in reports],
            "sentences": known + explain.end_of_group(events) + explain.memory_decisions(events),
            "since": later,
            "bundle": report,
        }

    def _state_now(self, model: Model) -> tuple[str, str]:
        row = with_steps({"state": str(model.state()), "reason": model.reason()}, model, self._model_set.models)
        return row["state"], row["reason"]


async def _until_cancelled(stop: Callable[[], None]) -> Json:
    """Following ends when the follower disconnects."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        stop()
    raise AssertionError("only a cancellation ends this wait")
