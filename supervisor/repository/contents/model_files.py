"""Faults in the files of one version of a model that are seen without running code.

Called by `mmsup check` alone: the controller opens no artifact, since it must not wait for a disk. Each fault would
fail the load. A file that is sound here may still be refused by its library.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.python_models import CLASS_FILE, MLSERVER_SETTINGS
from mmsup.ipc.specs import ENSEMBLE, MLSERVER, TRITON_PYTHON, ModelSpec
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue
from mmsup.supervisor.repository.contents import onnx_file, safetensors_file, torch_archive
from mmsup.supervisor.repository.contents.interpreter import Interpreter
from mmsup.supervisor.repository.contents.python_source import (
    PLAIN_MODEL,
    TORCH_MODEL,
    TRITON_MODEL,
    ImportLine,
    ModelClass,
    PythonSource,
    read_source,
)

LFS_HEAD: Final = b"version https://git-lfs"
_READERS: Final[dict[str, Callable[[str], None]]] = {
    ".onnx": onnx_file.check_file,
    ".pt": torch_archive.check_torchscript,
    ".pth": torch_archive.check_torchscript,
    ".pt2": torch_archive.check_exported,
    ".safetensors": safetensors_file.check_file,
}


@dataclass(frozen=True, slots=True)
class ContentFindings:
    faults: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()


class ContentReader:
    """Reads the versions of all models of a repository; each interpreter is asked once for each list of modules."""

    def __init__(self) -> None:
        self._interpreters: dict[str, Interpreter] = {}

    def read(self, spec: ModelSpec) -> ContentFindings:
        """Faults and warnings; their places begin with the model's name, and have no path of the repository."""
        if spec.engine == ENSEMBLE:  # has no file and no worker
            return ContentFindings()
        self._faults: list[ConfigError] = []
        self._warnings: list[ConfigError] = []
        self._place = f"{spec.name}/{spec.version}/{spec.artefact}"
        path = os.path.join(spec.directory, spec.artefact)
        reader = _READERS.get(os.path.splitext(path)[1])
        try:
            _check_head(path)
            if reader is not None:
                reader(path)
        except InvalidValue as error:
            self._faults += [ConfigError(self._place, text) for _, text in error.problems]
        except OSError as error:
            self._faults.append(ConfigError(self._place, f"cannot be read: {error.strerror}"))
        source = None
        if spec.interface == MLSERVER:
            source = PythonSource((ImportLine("mlserver", MLSERVER_SETTINGS, 1),))
        elif spec.engine == "custom":
            source = self._source(spec, path, TRITON_MODEL if spec.interface == TRITON_PYTHON else PLAIN_MODEL)
        elif path.endswith(".safetensors"):
            source = self._source(spec, os.path.join(spec.directory, CLASS_FILE), TORCH_MODEL)
        self._check_interpreter(spec, source)
        return ContentFindings(tuple(self._faults), tuple(self._warnings))

    def _source(self, spec: ModelSpec, path: str, kind: ModelClass) -> PythonSource | None:
        place = f"{spec.name}/{spec.version}/{os.path.basename(path)}"
        try:
            source = read_source(path, kind)
        except InvalidValue as error:
            self._faults += [ConfigError(place, text) for _, text in error.problems]
            return None
        except OSError as error:
            self._faults.append(ConfigError(place, f"cannot be read: {error.strerror}"))
            return None
        if kind is PLAIN_MODEL and "strings" not in spec.parameters:
            names = [each.name for each in spec.inputs if each.datatype == "BYTES"]
            if names:
                self._warnings.append(ConfigError(place, _strings_text(names)))
        return source

    def _check_interpreter(self, spec: ModelSpec, source: PythonSource | None) -> None:
        """That the interpreter has what a worker, its engine and the model's own imports need."""
        found = self._interpreters.setdefault(spec.python, Interpreter(spec.python))
        if problem := found.problem(spec.engine):
            self._faults.append(ConfigError(f"{spec.name}: python", problem))
            return
        if source is None:
            return
        paths = [each for each in spec.env.get("PYTHONPATH", "").split(os.pathsep) if each]
        for missing in found.missing(source.imports, paths):
            place = f"{spec.name}/{spec.version}/{missing.file}:{missing.line}"
            text = f"imports {missing.module}, which {found.name} does not have: {found.install(missing.module)}"
            into = self._warnings if source.changes_path else self._faults
            into.append(ConfigError(place, text))


def _check_head(path: str) -> None:
    """InvalidValue for a file that is no model of any kind."""
    with open(path, "rb") as file:
        head = file.read(len(LFS_HEAD))
    if not head:
        raise InvalidValue("is empty")
    if head == LFS_HEAD:
        raise InvalidValue("is a pointer of Git LFS, not the model: fetch the file itself by `git lfs pull`")


def _strings_text(names: list[str]) -> str:
    inputs = " and ".join(names)
    return (
        f"elements of {inputs} reach the class as bytes (b'red' == 'red' is never true): say `strings: text` in "
        "mmsup.yaml for str, or `strings: bytes` if bytes are meant"
    )
