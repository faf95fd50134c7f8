"""Reads `model-settings.json` of MLServer, where a model's folder has it and neither versions nor a `config.pbtxt`.

Covers: `name`, `implementation`, `inputs`, `outputs`, and of `parameters` `version`, `environment_path`; `uri`, `extra`
and all else are read by the class itself. The class is a `mlserver.MLModel` of the folder; the runtimes that come with
MLServer are not run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.python_models import MLSERVER_SETTINGS
from mmsup.ipc.specs import MLSERVER, ModelSpec
from mmsup.supervisor.config import model_options, validators
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed, hidden_error
from mmsup.supervisor.config.yaml_file import join_key, read_text
from mmsup.supervisor.repository.execution_environment import environment_interpreter
from mmsup.supervisor.repository.folders import VERSION_NAME, folder_names

_CLASS_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)
_RUNTIMES: Final = re.compile(r"mlserver(?:_\w+)?\.")
_TENSOR_KEYS: Final = ("name", "datatype", "shape")
_WITHOUT_EFFECT: Final = ("parallel_workers", "warm_workers", "max_batch_size", "max_batch_time", "cache_enabled")
NO_EFFECT: Final = "is read, and has no effect in this version"
NOT_RUN: Final = (
    "is a runtime of MLServer, which this version does not run: write a class Model that loads the file "
    "(docs/models.md), or export the model to ONNX"
)
UNDECLARED: Final = "is missing: mmsup serves declared tensors, each with name, datatype and shape"


@dataclass(frozen=True, slots=True)
class MlserverSettings:
    options: model_options.ModelOptions
    version: str = "1"
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()

    def spec(self, name: str, directory: str, options: model_options.ModelOptions) -> ModelSpec:
        """Of the one version, which is the folder itself. `options`: these, with those of other files."""
        fields = model_options.spec_fields(options)
        named = name, self.version, directory, MLSERVER_SETTINGS
        return ModelSpec(*named, "custom", "python", interface=MLSERVER, **fields)


def is_mlserver_folder(directory: str) -> bool:
    has_settings = os.path.isfile(os.path.join(directory, MLSERVER_SETTINGS))
    is_triton = os.path.lexists(os.path.join(directory, "config.pbtxt"))
    return has_settings and not is_triton and not any(VERSION_NAME.fullmatch(each) for each in folder_names(directory))


def read_settings(directory: str, model: str) -> MlserverSettings:
    place = f"{model}/{MLSERVER_SETTINGS}"
    try:
        found = json.loads(read_text(os.path.join(directory, MLSERVER_SETTINGS)))
    except InvalidValue as error:
        return MlserverSettings({}, errors=tuple(hidden_error(place, text, place) for _, text in error.problems))
    except (ValueError, RecursionError) as error:
        return MlserverSettings({}, errors=(hidden_error(place, f"is no JSON: {error}", place),))
    if not isinstance(found, dict):
        return MlserverSettings({}, errors=(hidden_error(place, "is no JSON object", place),))
    return _Reader(place, found, model, directory).settings()


class _Reader:
    """One pass over the keys of a file, which collects errors and warnings."""

    def __init__(self, place: str, given: Mapping[str, Any], model: str, directory: str) -> None:
        self.place = place
        self.given = given
        self.model = model
        self.directory = directory
        self.errors: list[ConfigError] = []
        self.options: model_options.ModelOptions = {}

    def settings(self) -> MlserverSettings:
        name = self.given.get("name", self.model)
        if name != self.model:
            self.error("name", f"{displayed(name)} is not the name of the folder, {displayed(self.model)}")
        self.implementation()
        for kind in ("inputs", "outputs"):
            self.tensors(kind)
        parameters = self.given.get("parameters") or {}
        if not isinstance(parameters, dict):
            self.error("parameters", "is no JSON object")
            parameters = {}
        self.environment(parameters)
        ignored = [each for each in _WITHOUT_EFFECT if self.given.get(each)]
        warnings = tuple(ConfigError(f"{self.place}: {each}", NO_EFFECT) for each in ignored)
        version = str(parameters.get("version") or "")
        chosen = version if VERSION_NAME.fullmatch(version) else "1"
        return MlserverSettings(self.options, chosen, tuple(self.errors), warnings)

    def error(self, key: str, text: str) -> None:
        place = f"{self.place}: {key}"
        self.errors.append(hidden_error(place, text, place))

    def implementation(self) -> None:
        value = self.given.get("implementation")
        if not isinstance(value, str) or not _CLASS_PATH.fullmatch(value):
            self.error("implementation", f"{displayed(value)} is no class, as `models.MyModel` in models.py")
        elif _RUNTIMES.match(value):
            self.error("implementation", f"{displayed(value)} {NOT_RUN}")
        elif not self._has_module(value.partition(".")[0]):
            self.error("implementation", f"{displayed(value)} is in no module of the folder")

    def _has_module(self, name: str) -> bool:
        path = os.path.join(self.directory, name)
        return os.path.isfile(f"{path}.py") or os.path.isdir(path)

    def tensors(self, kind: str) -> None:
        given = self.given.get(kind)
        if not given:
            self.error(kind, UNDECLARED)
            return
        try:
            self.options[kind] = validators.tensors(_without_hints(given))
        except InvalidValue as error:
            for key, text in error.problems:
                self.error(join_key(kind, key), text)

    def environment(self, parameters: Mapping[str, Any]) -> None:
        for key in ("environment_path", "environment_tarball"):
            value = parameters.get(key)
            if not value:
                continue
            try:
                path = os.path.join(self.directory, str(value))
                self.options["python"] = environment_interpreter(path, self.directory)
            except InvalidValue as error:
                self.error(f"parameters.{key}", str(error))


def _without_hints(given: object) -> object:  # JSON
    """Tensors without the keys that are for MLServer's codecs, which its class still reads in the file."""
    if not isinstance(given, list):
        return given
    return [
        {key: each[key] for key in _TENSOR_KEYS if key in each} if isinstance(each, dict) else each for each in given
    ]
