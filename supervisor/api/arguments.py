"""Reads and checks the arguments of commands: JSON from outside. A wrong one is a CallerError."""

from __future__ import annotations

from mmsup.ipc.errors import CallerError
from mmsup.supervisor.api.handlers import Json
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import ModelSet


def text_argument(arguments: Json, key: str, default: str | None = None) -> str:
    value = arguments.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise CallerError("bad_request", f"argument '{key}' must be a text")
    return value


def count_argument(arguments: Json, key: str, default: int) -> int:
    value = arguments.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise CallerError("bad_request", f"argument '{key}' must be a number, 0 or more")
    return value


def flag_argument(arguments: Json, key: str) -> bool:
    value = arguments.get(key) or False
    if not isinstance(value, bool):
        raise CallerError("bad_request", f"argument '{key}' must be true or false")
    return value


def model_argument(arguments: Json, model_set: ModelSet) -> Model:
    name = text_argument(arguments, "name" if "name" in arguments else "model")
    model = model_set.model(name)
    if model is None:
        raise unknown_model(name)
    return model


def unknown_model(name: str) -> CallerError:
    return CallerError("unknown_model", f"Request for unknown model: '{name}' is not found", model=name)
