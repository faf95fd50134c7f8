"""Calls that change the server: who may make them, and what a request to load or unload holds. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.errors import CallerError, make_error
from mmsup.ipc.messages.gateway_control import ConfigureGateway

FILE_PREFIX: Final = "file:"
FILES_LIMIT: Final = 64
NAME_BYTES: Final = 255
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_FILE: Final = re.compile(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*")
_DATA: Final = (".onnx", ".onnx.data", ".safetensors", ".json", ".txt", ".csv")
"""Endings of files that no engine takes code from."""


def check_local(*, is_local: bool) -> None:
    """CallerError for a client of another machine."""
    if not is_local:
        raise CallerError("forbidden", "control calls are answered on loopback and UNIX listeners only")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """`parameters`: scalars, which the controller checks; `files`: contents by VERSION/FILE."""

    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])


def load_request(
    model: str, given: Mapping[str, Any], configuration: ConfigureGateway, *, long_name_code: str = "bad_request"
) -> LoadRequest:
    """`given`: parameters, of which those of files are bytes, or text in base64. `long_name_code`: of the error for a
    name that no file can have. MmsupError if the operator does not allow files, or one is not valid."""
    made = LoadRequest()
    for key, value in given.items():
        if not key.startswith(FILE_PREFIX):
            made.parameters[key] = value
            continue
        if not configuration.allow_model_uploads:
            text = (
                f"failed to load '{model}': files may not be sent to this server: start it with --allow-model-uploads"
            )
            raise CallerError("forbidden", text, model=model)
        name = key.removeprefix(FILE_PREFIX)
        _check_name(model, name, long_name_code)
        if not configuration.allow_code_uploads and not name.endswith(_DATA):
            text = f"failed to load '{model}': '{name:.80}' may hold code: start the server with --allow-code-uploads"
            raise CallerError("forbidden", text, model=model)
        made.files[name] = _contents(model, name, value)
    if made.files and not made.parameters.get("config"):
        text = f"failed to load '{model}': with files the parameter 'config' is needed ('{{}}' where they say all)"
        raise CallerError("bad_request", text, model=model)
    if len(made.files) > FILES_LIMIT:
        text = f"failed to load '{model}': {len(made.files)} files, at most {FILES_LIMIT} are taken"
        raise CallerError("bad_request", text, model=model)
    return made


def _check_name(model: str, name: str, long_name_code: str) -> None:
    version, _, file = name.partition("/")
    if any(len(part.encode("utf-8", "replace")) > NAME_BYTES for part in (version, file)):
        text = (
            f"failed to load '{model}', failed to poll from model repository: a file's name is over {NAME_BYTES} bytes"
        )
        raise make_error(long_name_code, text, model=model)
    is_text = file.encode("utf-8", "replace").decode() == file
    if not _VERSION.fullmatch(version) or not _FILE.fullmatch(file) or not is_text:
        text = f"failed to load '{model}': '{name:.80}' is no VERSION/FILE with a number and the name of a file"
        raise CallerError("bad_request", text, model=model)


def _contents(model: str, name: str, value: Any) -> bytes:  # JSON, or bytes
    if isinstance(value, bytes):
        return value
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise CallerError("bad_request", f"failed to load '{model}': the file '{name:.80}' is not in base64", model=model)
