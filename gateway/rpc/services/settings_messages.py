"""The messages of TraceSetting and LogSettings as the JSON that HTTP has, and back. Pure."""

from __future__ import annotations

from typing import Any

from mmsup.gateway.rpc.calls.messages import Message

Json = dict[str, Any]  # a JSON object


def log_changes(request: Message) -> Json:
    """A value that is not set is null, which no log setting may be."""
    kinds = {key: value.WhichOneof("choice") for key, value in request.settings.items()}
    return {key: getattr(request.settings[key], kind) if kind else None for key, kind in kinds.items()}


def log_reply(shown: Json) -> Json:
    return {"settings": {key: {_kind(value): value} for key, value in shown.items()}}


def _kind(value: Any) -> str:  # JSON
    if isinstance(value, bool):
        return "bool_param"
    return "uint32_param" if isinstance(value, int) else "string_param"


def trace_changes(request: Message) -> Json:
    """A setting without a value is null: it goes back to that of the server, or to its default."""
    return {key: list(value.value) or None for key, value in request.settings.items()}


def trace_reply(shown: Json) -> Json:
    return {"settings": {key: {"value": value if isinstance(value, list) else [value]} for key, value in shown.items()}}
