"""The parameter EXECUTION_ENV_PATH of Triton's Python models: an environment with an interpreter of its own.

It is a folder, unpacked: absolute, or in the model's folder behind `$$TRITON_MODEL_DIRECTORY`. Its `bin/python` runs
the model's workers, as the key `python` of `mmsup.yaml` says it.
"""

from __future__ import annotations

import os
from typing import Any, Final

from mmsup.supervisor.config.config_error import InvalidValue, displayed

PARAMETER: Final = "EXECUTION_ENV_PATH"
MODEL_DIRECTORY: Final = "$$TRITON_MODEL_DIRECTORY"
_INTERPRETERS: Final = ("bin/python", "bin/python3")


def environment_of(config: dict[str, Any]) -> str:  # ModelConfig as JSON
    """The value of the parameter; empty if there is none."""
    given: dict[str, Any] = config.get("parameters", {}).get(PARAMETER, {})
    return str(given.get("string_value", ""))


def environment_folder(value: str, model_directory: str) -> str:
    """The folder that the parameter names; InvalidValue unless it is absolute, or inside the model's folder. Pure."""
    if value.startswith(MODEL_DIRECTORY):
        path = os.path.normpath(model_directory + value.removeprefix(MODEL_DIRECTORY))
        if not path.startswith(model_directory + os.sep):
            raise InvalidValue(f"{displayed(value)} leads out of the model's folder")
        return path
    if not os.path.isabs(value):
        raise InvalidValue(f"{displayed(value)} is neither absolute nor begins with {MODEL_DIRECTORY}/")
    return os.path.normpath(value)


def environment_interpreter(value: str, model_directory: str) -> str:
    """The interpreter in that folder; InvalidValue if there is none."""
    path = environment_folder(value, model_directory)
    shown = displayed(value, 4096)
    if os.path.isfile(path):
        folder = path.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz") + "_env"
        raise InvalidValue(
            f"{shown} is a file: environments are not unpacked here; unpack it once, "
            f"`mkdir {folder} && tar -xf {path} -C {folder}`, and name that folder"
        )
    if not os.path.isdir(path):
        raise InvalidValue(f"{shown} is not there")
    for each in _INTERPRETERS:
        interpreter = os.path.join(path, each)
        if os.access(interpreter, os.X_OK):
            return interpreter
    raise InvalidValue(f"{shown} has no {_INTERPRETERS[0]}: it is no environment of Python")
