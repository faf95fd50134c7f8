"""The model repositories: which models there are, what each is to be, what is wrong with it.

Covers: the layout REPO/NAME/[config.pbtxt, mmsup.yaml], REPO/NAME/VERSION/FILE; the layers of configuration of a model.
Nearer wins: `defaults:` < `models: NAME:` (the server's file) < config.pbtxt, its `mmsup_*` last < mmsup.yaml.
Does not cover: which models shall run (wanted.py); what is inside an artefact (the worker opens it, nobody else).

Called by `mmsup check`, and by the brain at its start, at a load and at a poll. It opens files of configuration and
lists folders; whatever is wrong with a model is a Fault of that model and of no other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.config import batching_options, model_options
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.config.validators import NAME
from mmsup.supervisor.config.yaml_file import FILE_LIMIT_BYTES, NOT_REGULAR, ConfigSource, read_text, read_yaml
from mmsup.supervisor.repository.artifact import Artifact, is_artifact, select_artifact
from mmsup.supervisor.repository.config_pbtxt import ParsedConfig, read_json, read_pbtxt
from mmsup.supervisor.repository.model_config import NO_EFFECT, InterpretedConfig, interpret

PBTXT: Final = "config.pbtxt"
YAML: Final = "mmsup.yaml"
YAML_LIMIT_BYTES: Final = 64 << 10
"""PyYAML reads about 100 kB/s, and the brain waits for it."""
DIGEST_FILES: Final = 4096
SPEC_LIMIT: Final = MESSAGE_LIMIT // 2
"""A spec travels with its metadata in one message."""
SPEC_TOO_LONG: Final = f"its configuration is longer than {SPEC_LIMIT} bytes"
REASON_ERRORS: Final = 4
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a repository. `specs` are the versions that can be served, ascending: of those that the version policy
    chooses, the ones without a fault of their own; a fault of the model as a whole leaves none.

    Places of faults begin with the model's name, not with the repository's path: they may be shown to clients.
    """

    name: str
    specs: tuple[ModelSpec, ...] = ()
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()
    all_versions: tuple[str, ...] = ()
    invalid_versions: dict[str, str] = field(default_factory=dict[str, str])
    """Chosen version to why it cannot be served."""
    directory: str = ""
    file_digest: str = ""
    """Changes when a file of the model does."""
    server_options: dict[str, Any] = field(default_factory=dict[str, Any])  # keys of a model
    """What the server's file says of it."""

    @property
    def reason(self) -> str:
        """Its first faults in one line, for an index."""
        more = len(self.errors) - REASON_ERRORS
        first = "; ".join(str(each) for each in self.errors[:REASON_ERRORS])
        return first + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class RepositoryRoot:
    """A repository's folder as it was read: the file system that it lies on, and how many folders it holds."""

    device: int
    folder_count: int


@dataclass(frozen=True, slots=True)
class RepositoryScan:
    """All models, by name. `faults` are of the repositories themselves: a folder that cannot be read."""

    models: dict[str, ModelEntry]
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()
    roots: dict[str, RepositoryRoot] = field(default_factory=dict[str, RepositoryRoot])
    """Those that could be read."""


def scan(settings: Settings) -> RepositoryScan:
    """Every model of every repository."""
    return next(found for found in scan_stepwise(settings) if found is not None)


def scan_stepwise(settings: Settings) -> Iterator[RepositoryScan | None]:
    """As `scan`, for whoever has other things to do meanwhile: nothing after each model, the whole at last."""
    homes: dict[str, list[str]] = {}
    faults: list[ConfigError] = []
    warnings: list[ConfigError] = []
    found: dict[str, RepositoryRoot] = {}
    for root in settings.repositories:
        try:
            found[root], names = _list_repository(root)
        except InvalidValue as wrong:
            faults.append(ConfigError(root, str(wrong)))
            continue
        for name in names:
            if NAME.fullmatch(name):
                homes.setdefault(name, []).append(root)
            else:
                warnings.append(
                    ConfigError(root, f"{displayed(name)} is no name of a model; the folder is passed over")
                )
    models: dict[str, ModelEntry] = {}
    for name, roots in sorted(homes.items()):
        models[name] = _scan_model_folder(settings, name, roots)
        yield None
    for name in settings.models:
        if name not in models:
            warnings.append(ConfigError(f"models.{name}", "no repository holds this model"))
    yield RepositoryScan(models, tuple(faults), tuple(warnings), found)


def unreadable_repositories(settings: Settings) -> list[ConfigError]:
    """What keeps the repositories themselves from being read."""
    faults: list[ConfigError] = []
    for root in settings.repositories:
        try:
            _list_repository(root)
        except InvalidValue as wrong:
            faults.append(ConfigError(root, str(wrong)))
    return faults


def missing_model(name: str) -> ModelEntry:
    """A model that somebody wants and no repository holds."""
    return ModelEntry(name, errors=(ConfigError(name, "no repository holds this model, which --load-model names"),))


def scan_model(settings: Settings, name: str) -> ModelEntry | None:
    """One model as it lies there now; None if no repository holds it."""
    if not NAME.fullmatch(name):
        return None
    roots = [root for root in settings.repositories if os.path.isdir(os.path.join(root, name))]
    return _scan_model_folder(settings, name, roots) if roots else None


def with_config(entry: ModelEntry, config_json: str) -> ModelEntry:
    """The model again, with this ModelConfig (JSON text of a load request) in the place of its config.pbtxt."""
    if not entry.directory:
        return entry  # in several repositories: its fault stays
    place = f"{entry.name}: parameter config"
    if len(config_json) > FILE_LIMIT_BYTES:
        return replace(entry, specs=(), errors=(ConfigError(place, f"is larger than {FILE_LIMIT_BYTES} bytes"),))
    said = read_json(config_json, place)
    return _ModelFolder(entry.name, entry.directory, entry.server_options).entry(said)


def _scan_model_folder(settings: Settings, name: str, roots: list[str]) -> ModelEntry:
    if len({os.path.realpath(root) for root in roots}) > 1:
        return ModelEntry(
            name, errors=(ConfigError(name, f"lies in {len(roots)} repositories; a name belongs to one model"),)
        )
    defaults, faults = model_options.parse_options(settings.defaults, ConfigSource("the server's file"), "defaults")
    named, more = model_options.parse_options(
        settings.models.get(name, {}), ConfigSource("the server's file"), f"models.{name}"
    )
    folder = _ModelFolder(name, os.path.join(roots[0], name), model_options.merge(defaults, named))
    folder.errors += (*faults, *more)
    return folder.entry()


class _ModelFolder:
    """One model's folder, read once; faults and warnings gather on the way."""

    def __init__(self, name: str, directory: str, server_keys: Mapping[str, Any]) -> None:  # keys of a model
        self.name = name
        self.directory = os.path.abspath(directory)
        self.server_options = dict(server_keys)
        self.errors: list[ConfigError] = []
        self.warnings: list[ConfigError] = []
        self.invalid_versions: dict[str, str] = {}

    def entry(self, said: ParsedConfig | None = None) -> ModelEntry:
        """All there is to say of the model; `said` stands for its config.pbtxt if given."""
        specs: tuple[ModelSpec, ...] = ()
        versions: tuple[str, ...] = ()
        stamp = ""
        try:
            versions = self.versions()
            own = self.own_options()
            config = said or self.pbtxt()
            meaning = interpret(config, self.name, from_client=said is not None)
            self.errors += meaning.errors
            self.warnings += meaning.warnings
            all_keys = model_options.merge(self.server_options, meaning.options, own)
            self.check_options(all_keys)
            specs = self.specs(versions, meaning, all_keys, config.config)
            stamp = _file_digest(self.directory, versions)
        except OSError as error:
            self.errors.append(ConfigError(self.name, f"cannot be read: {error.strerror}"))
        return ModelEntry(
            self.name,
            specs,
            tuple(self.errors),
            tuple(self.warnings),
            versions,
            self.invalid_versions,
            self.directory,
            stamp,
            self.server_options,
        )

    def versions(self) -> tuple[str, ...]:
        """The versions there are, ascending."""
        found: list[str] = []
        for each in _folders(self.directory):
            if _VERSION.fullmatch(each):
                found.append(each)
            else:
                self.warnings.append(
                    ConfigError(self.name, f"the folder {displayed(each)} is no version, and is passed over")
                )
        if not found:
            self.errors.append(
                ConfigError(self.name, "has no version: a folder with a positive number, and the model in it")
            )
        return tuple(sorted(found, key=int))

    def own_options(self) -> model_options.ModelOptions:
        """The keys of the model's own mmsup.yaml."""
        path = os.path.join(self.directory, YAML)
        if not os.path.lexists(path):
            return {}
        document = read_yaml(path, f"{self.name}/{YAML}", YAML_LIMIT_BYTES)
        found, faults = model_options.parse_options(document.keys, document.source)
        self.errors += (*document.errors, *faults)
        return found

    def pbtxt(self) -> ParsedConfig:
        """The model's config.pbtxt."""
        path, name = os.path.join(self.directory, PBTXT), f"{self.name}/{PBTXT}"
        if not os.path.lexists(path):
            return ParsedConfig(ConfigSource(name), {})
        try:
            return read_pbtxt(read_text(path), name)
        except InvalidValue as wrong:
            return ParsedConfig(ConfigSource(name), {}, tuple(ConfigError(name, text) for _, text in wrong.problems))

    def check_options(self, all_keys: model_options.ModelOptions) -> None:
        """What only the machine can tell of a key, and which keys wait for a later version."""
        python = all_keys.get("python", "")
        if python and not os.access(python, os.X_OK):
            self.errors.append(
                ConfigError(f"{self.name}: python", f"{displayed(python)} is no program that can be run here")
            )
        if batching_options.has_no_effect(all_keys):
            text = "has no effect: max_batch_size is 0, so requests run one by one"
            self.warnings.append(ConfigError(f"{self.name}: batching", text))
        for size in batching_options.oversized_batches(all_keys):
            text = f"{size} is more than max_batch_size, {all_keys['max_batch_size']}"
            self.errors.append(ConfigError(f"{self.name}: batching", text))
        for word in model_options.unsupported(all_keys):
            self.warnings.append(ConfigError(f"{self.name}: {word}", NO_EFFECT))

    def specs(
        self,
        versions: tuple[str, ...],
        meaning: InterpretedConfig,
        all_keys: model_options.ModelOptions,
        config: dict[str, Any],
    ) -> tuple[ModelSpec, ...]:  # ModelConfig as JSON
        """The specs of the chosen versions; none if the model as a whole has a fault."""
        chosen = meaning.version_policy.select(versions)
        if versions and not chosen:
            self.errors.append(
                ConfigError(f"{self.name}/{PBTXT}: version_policy", "chooses none of the versions there are")
            )
        whole = tuple(self.errors)
        fields = model_options.spec_fields(all_keys)
        found: list[ModelSpec] = []
        for version in chosen:
            directory = os.path.join(self.directory, version)
            try:
                artefact = select_artifact(_files(directory, refuse=True), meaning.engine, meaning.artifact)
                _check_artifact(artefact, all_keys, is_all_known=not whole)
            except (InvalidValue, OSError) as error:
                text = str(error) if isinstance(error, InvalidValue) else f"cannot be read: {error.strerror}"
                self.invalid_versions[version] = text
                self.errors.append(ConfigError(f"{self.name}/{version}", text))
                continue
            spec = ModelSpec(self.name, version, directory, artefact.file, artefact.engine, artefact.platform)
            found.append(replace(spec, config=config, **fields))
            if len(to_json(found[-1])) > SPEC_LIMIT:  # no shorter than it will be on the wire
                self.invalid_versions[version] = SPEC_TOO_LONG
                self.errors.append(ConfigError(f"{self.name}/{version}", SPEC_TOO_LONG))
                found.pop()
        return () if whole else tuple(found)


def _check_artifact(artefact: Artifact, all_keys: model_options.ModelOptions, *, is_all_known: bool) -> None:
    """What an artefact demands of its configuration; Wrong if it is not there. Where a fault has hidden some of the
    configuration, nobody is told that inputs are missing which may well be there."""
    wrongs: list[str] = []
    if artefact.needs_trust and not all_keys.get("trusted", False):
        wrongs.append(f"{artefact.file} comes with code, model.py: say trusted: true in {YAML} if it may run")
    missing = [word for word in ("inputs", "outputs") if word not in all_keys]
    if missing and is_all_known and not artefact.declares_tensors:
        wrongs.append(
            f"{artefact.file} does not tell its {' and '.join(missing)}: declare them in {PBTXT} or {YAML}",
        )
    if wrongs:
        raise InvalidValue(*wrongs)


def _list_repository(root: str) -> tuple[RepositoryRoot, list[str]]:
    """A repository and the names of its folders; of one file system, whatever is mounted or unmounted meanwhile. Wrong
    if it cannot be read."""
    fd = -1
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        names = _folders(fd)
        return RepositoryRoot(os.fstat(fd).st_dev, len(names)), names
    except OSError as error:
        raise InvalidValue(f"cannot be read: {error.strerror}") from None
    finally:
        if fd >= 0:
            os.close(fd)


def _folders(directory: str | int) -> list[str]:
    """Names of the folders in a folder, links to folders too; hidden ones are nobody's."""
    with os.scandir(directory) as entries:
        return sorted(each.name for each in entries if not each.name.startswith(".") and _is_folder(each))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A name that cannot be looked at counts: whoever opens it says why, and its neighbours are read."""
    try:
        return entry.is_dir()
    except OSError:
        return True


def _files(directory: str, *, refuse: bool = False) -> set[str]:
    """Names of the files in a version's folder; a folder `model.onnx` holds the file and its external weights.

    With `refuse`: Wrong for a pipe, a socket or a device by a model's name, at which an engine would wait for ever.
    """
    found: set[str] = set()
    with os.scandir(directory) as entries:
        for each in entries:
            inner = f"{each.name}/{each.name}"
            if each.is_file():
                found.add(each.name)
            elif each.is_dir():
                if each.name.endswith(".onnx") and os.path.isfile(os.path.join(directory, inner)):
                    found.add(inner)
            elif refuse and is_artifact(each.name) and os.path.exists(each.path):
                raise InvalidValue(f"{displayed(each.name)} {NOT_REGULAR}")
    return found


def _file_digest(directory: str, versions: tuple[str, ...]) -> str:
    """A digest of name, size and time of the model's files, up to a bound. Not of folders: a worker that imports
    model.py leaves a `__pycache__`, and that is no change of the model."""
    digest = hashlib.blake2b(digest_size=8)
    for folder in (directory, *(os.path.join(directory, each) for each in versions)):
        for name in sorted(_files(folder))[:DIGEST_FILES]:
            path = os.path.join(folder, name)
            facts = os.stat(path)
            digest.update(os.fsencode(f"{path}\0{facts.st_ino}\0{facts.st_size}\0{facts.st_mtime_ns}\0"))
    return digest.hexdigest()
