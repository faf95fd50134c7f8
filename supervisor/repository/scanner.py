"""Scans model repositories: which models there are, their specs, and the errors in their configuration.

Covers: the layout REPO/NAME/[config.pbtxt, mmsup.yaml], REPO/NAME/VERSION/FILE; the layers of a model's configuration,
in ascending precedence: `defaults:`, `models: NAME:` (both in the server's file), config.pbtxt with its `mmsup_*`
parameters last, mmsup.yaml. Does not cover: which models are to run (state/desired_state.py); the contents of an
artifact, which only the worker opens.

Called by `mmsup check`, and by the controller at its start, for a load and for a poll. It reads configuration files and
lists folders. An error in one model never affects another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mmsup.ipc.specs import ENSEMBLE, WARM_UP_FOLDER, ModelSpec
from mmsup.ipc.transport.control_channel import MESSAGE_LIMIT
from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.config import batching_options, model_options
from mmsup.supervisor.config.config_error import (
    ConfigError,
    InvalidValue,
    displayed,
    first_errors,
    hidden_error,
    plain_error,
)
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.config.validators import NAME
from mmsup.supervisor.config.yaml_file import FILE_LIMIT_BYTES, ConfigSource, read_text, read_yaml
from mmsup.supervisor.repository.artifact import select_artifact
from mmsup.supervisor.repository.artifact_needs import check_artifact, lines_to_paste
from mmsup.supervisor.repository.config_pbtxt import ParsedConfig, read_json, read_pbtxt
from mmsup.supervisor.repository.contents.source_facts import SourceFacts, source_facts
from mmsup.supervisor.repository.ensembles.ensemble_config import ensemble_specs
from mmsup.supervisor.repository.ensembles.step_checks import step_faults
from mmsup.supervisor.repository.execution_environment import PARAMETER, environment_interpreter, environment_of
from mmsup.supervisor.repository.folders import (
    VERSION_NAME,
    RepositoryRoot,
    file_digest,
    file_names,
    folder_names,
    layout_hint,
    list_repository,
)
from mmsup.supervisor.repository.group_rules import contradiction
from mmsup.supervisor.repository.label_files import label_file_problems
from mmsup.supervisor.repository.links import followed_folders, link_error, link_errors
from mmsup.supervisor.repository.mlserver_settings import is_mlserver_folder, read_settings
from mmsup.supervisor.repository.model_config import InterpretedConfig, interpret
from mmsup.supervisor.repository.warm_up_config import sample_problems

PBTXT: Final = "config.pbtxt"
YAML: Final = "mmsup.yaml"
YAML_LIMIT_BYTES: Final = 64 << 10
"""PyYAML parses about 100 kB/s, and the controller waits for it."""
SPEC_LIMIT: Final = MESSAGE_LIMIT // 2
"""A spec is sent with its metadata in one message."""
SPEC_TOO_LONG: Final = f"its configuration is longer than {SPEC_LIMIT} bytes"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a repository. `specs` are the versions that can be served, ascending: those that the version policy
    selects and that have no error. An error of the model as a whole leaves none.

    Places of errors begin with the model's name, not with the path of the repository: clients may see them. Errors of
    the model as a whole come first, then those of its versions.
    """

    name: str
    specs: tuple[ModelSpec, ...] = ()
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()
    all_versions: tuple[str, ...] = ()
    invalid_versions: dict[str, str] = field(default_factory=dict[str, str])
    """Version that the policy selects to the reason why it cannot be served."""
    directory: str = ""
    file_digest: str = ""
    """Changes when a file of the model changes."""
    server_options: dict[str, Any] = field(default_factory=dict[str, Any])  # model options
    """Its options in the server's file."""
    followed: tuple[str, ...] = ()
    """Folders into which its links may lead."""

    @property
    def reason(self) -> str:
        """Its first errors in one line, for the operator's list of models."""
        return first_errors([str(each) for each in self.errors])

    @property
    def paste(self) -> str:
        """What follows the reason, for the operator alone: the lines of YAML that mend its first error which has some,
        each on a line of its own."""
        lines = next((each.paste for each in self.errors if each.paste), "").splitlines()
        return "".join(f"\n    {each}" for each in lines)

    @property
    def public_reason(self) -> str:
        """The same for HTTP clients: without anything that the files hold."""
        return first_errors([each.for_clients for each in self.errors])


@dataclass(frozen=True, slots=True)
class RepositoryScan:
    """All models by name. `errors` concern the repositories themselves: a folder that cannot be read."""

    models: dict[str, ModelEntry]
    errors: tuple[ConfigError, ...] = ()
    warnings: tuple[ConfigError, ...] = ()
    roots: dict[str, RepositoryRoot] = field(default_factory=dict[str, RepositoryRoot])
    """Repositories that could be read."""


def scan(settings: Settings) -> RepositoryScan:
    return next(found for found in scan_stepwise(settings) if found is not None)


def scan_stepwise(settings: Settings) -> Iterator[RepositoryScan | None]:
    """As `scan`, in steps: yields None after each model, and the result at last."""
    homes: dict[str, list[str]] = {}
    errors: list[ConfigError] = []
    warnings: list[ConfigError] = []
    found: dict[str, RepositoryRoot] = {}
    for root in settings.repositories:
        try:
            found[root], names = list_repository(root)
        except InvalidValue as error:
            errors.append(ConfigError(root, str(error)))
            continue
        for name in names:
            if NAME.fullmatch(name):
                homes.setdefault(name, []).append(root)
            else:
                warnings.append(ConfigError(root, f"{displayed(name)} is no name of a model; the folder is skipped"))
    models: dict[str, ModelEntry] = {}
    specs: list[ModelSpec] = []
    for name, roots in sorted(homes.items()):  # the first of a group says what the others must agree with
        models[name] = with_group_error(_scan_model_folder(settings, name, roots), specs)
        specs += models[name].specs
        yield None
    models = {name: with_step_errors(each, models) for name, each in models.items()}
    used = {key for name in models for key in model_options.sections_of(settings.models, name)}
    for name in settings.models:
        if name not in used:
            warnings.append(ConfigError(f"models.{name}", "no repository holds this model"))
    yield RepositoryScan(models, tuple(errors), tuple(warnings), found)


def unreadable_repositories(settings: Settings) -> list[ConfigError]:
    errors: list[ConfigError] = []
    for root in settings.repositories:
        try:
            list_repository(root)
        except InvalidValue as error:
            errors.append(ConfigError(root, str(error)))
    return errors


def missing_model(name: str) -> ModelEntry:
    """An entry for a model that --load-model names and no repository holds."""
    return ModelEntry(name, errors=(plain_error(name, "no repository holds this model, which --load-model names"),))


def scan_model(settings: Settings, name: str) -> ModelEntry | None:
    """Scan one model; None if no repository holds it."""
    if not NAME.fullmatch(name):
        return None
    paths = {root: os.path.join(root, name) for root in settings.repositories}
    roots = [root for root, path in paths.items() if os.path.isdir(path) or os.path.islink(path)]
    return _scan_model_folder(settings, name, roots) if roots else None


def with_config(entry: ModelEntry, config_json: str) -> ModelEntry:
    """Scan the model again, with this ModelConfig (JSON text of a load request) instead of its config.pbtxt."""
    if not entry.directory:
        return entry  # in several repositories: its error stays
    place = f"{entry.name}: parameter config"
    if len(config_json) > FILE_LIMIT_BYTES:
        return replace(entry, specs=(), errors=(ConfigError(place, f"is larger than {FILE_LIMIT_BYTES} bytes"),))
    parsed = read_json(config_json, place)
    return _ModelFolder(entry.name, entry.directory, entry.server_options, entry.followed).entry(parsed)


def _scan_model_folder(settings: Settings, name: str, roots: list[str]) -> ModelEntry:
    if len({os.path.realpath(root) for root in roots}) > 1:
        text = f"is in {len(roots)} repositories; a name belongs to one model"
        return ModelEntry(name, errors=(plain_error(name, text),))
    source = ConfigSource("the server's file")
    keys = model_options.sections_of(settings.models, name)
    sections = {"defaults": settings.defaults} | {f"models.{key}": settings.models[key] for key in keys}
    parsed = [model_options.parse_options(raw, source, place) for place, raw in sections.items()]
    of_server = {"cold_start_timeout": settings.cold_start_timeout_s} if settings.cold_start_timeout_s else {}
    options = model_options.merge(of_server, *(layer for layer, _ in parsed))
    folder = _ModelFolder(name, os.path.join(roots[0], name), options, followed_folders(settings))
    folder.errors += tuple(error for _, errors in parsed for error in errors)
    return folder.entry()


def with_group_error(entry: ModelEntry, others: Iterable[ModelSpec]) -> ModelEntry:
    """The entry, with an error in the place of its specs if one of them contradicts others of its group."""
    error = contradiction(entry.specs, others)
    return entry if error is None else replace(entry, specs=(), errors=(error, *entry.errors))


class _ModelFolder:
    """Reads the folder of one model, and collects errors and warnings."""

    def __init__(
        self, name: str, directory: str, server_options: model_options.ModelOptions, followed: tuple[str, ...]
    ) -> None:
        self.name = name
        self.directory = os.path.abspath(directory)
        self.server_options = server_options
        self.followed = followed
        self.errors: list[ConfigError] = []
        self.warnings: list[ConfigError] = []
        self.version_errors: list[ConfigError] = []
        self.invalid_versions: dict[str, str] = {}

    def entry(self, parsed: ParsedConfig | None = None) -> ModelEntry:
        """Read everything; `parsed` replaces its config.pbtxt if given."""
        specs: tuple[ModelSpec, ...] = ()
        versions: tuple[str, ...] = ()
        digest = ""
        try:
            if self.may_follow("", self.directory):
                if parsed is None and is_mlserver_folder(self.directory):
                    versions, specs = self.mlserver()
                else:
                    versions = self.versions()
                    specs = self.read(versions, parsed)
                digest = file_digest(self.directory, versions)
        except OSError as error:
            self.errors.append(plain_error(self.name, f"cannot be read: {error.strerror}"))
        errors, warnings = (*self.errors, *self.version_errors), tuple(self.warnings)
        found = ModelEntry(self.name, specs, errors, warnings, versions, self.invalid_versions)
        found = replace(found, directory=self.directory, file_digest=digest, server_options=self.server_options)
        return replace(found, followed=self.followed)

    def read(self, versions: tuple[str, ...], parsed: ParsedConfig | None) -> tuple[ModelSpec, ...]:
        own = self.own_options()
        config = parsed or self.pbtxt()
        interpreted = interpret(config, self.name, from_client=parsed is not None)
        is_clients = parsed is not None  # who has sent a configuration may see what is wrong with it
        self.errors += (replace(each, public=str(each)) if is_clients else each for each in interpreted.errors)
        self.warnings += interpreted.warnings
        labels = label_file_problems(self.directory, config.config)
        self.warnings += [ConfigError(config.source.place(key), text) for key, text in labels]
        environment = self.environment(config, is_clients=is_clients)
        options = model_options.merge(self.server_options, interpreted.options, environment, own)
        self.check_options(options)
        for key, text in sample_problems(config.config.get("model_warmup", []), options, self.directory):
            place = config.source.place(key)
            self.errors.append(hidden_error(place, text, place.removesuffix(f": {key}")))
        return self.specs(versions, interpreted, options, config.config)

    def mlserver(self) -> tuple[tuple[str, ...], tuple[ModelSpec, ...]]:
        """The version and the spec of a folder of MLServer."""
        settings = read_settings(self.directory, self.name)
        self.errors += (*link_errors(self.name, self.directory, self.followed), *settings.errors)
        self.warnings += settings.warnings
        options = model_options.merge(self.server_options, settings.options, self.own_options())
        self.check_options(options)
        specs = () if self.errors else (settings.spec(self.name, self.directory, options),)
        return (settings.version,), specs

    def environment(self, config: ParsedConfig, *, is_clients: bool) -> model_options.ModelOptions:
        """The interpreter that the parameter EXECUTION_ENV_PATH names. A client may not choose another one."""
        value, place = environment_of(config.config), config.source.place(f"parameters.{PARAMETER}")
        try:
            if is_clients and value and value != environment_of(self.pbtxt().config):
                raise InvalidValue("is for the operator's files alone, not for a load request")
            return {"python": environment_interpreter(value, self.directory)} if value else {}
        except InvalidValue as error:
            self.errors.append(hidden_error(place, str(error), place))
            return {}

    def may_follow(self, at: str, path: str) -> bool:
        """Whether a path is no link, or one that may be followed; reports an error otherwise."""
        error = link_error(self.name + at, path, self.followed)
        if error is not None:
            self.errors.append(error)
        return error is None

    def error(self, at: str, text: str) -> None:
        """`at`: what follows the model's name in the place of the error."""
        self.errors.append(ConfigError(self.name + at, text))

    def version_error(self, version: str, *errors: ConfigError) -> None:
        self.invalid_versions[version] = "; ".join(each.text for each in errors)
        self.version_errors += errors

    def warn(self, at: str, text: str) -> None:
        self.warnings.append(ConfigError(self.name + at, text))

    def versions(self) -> tuple[str, ...]:
        found: list[str] = []
        for each in folder_names(self.directory):
            if VERSION_NAME.fullmatch(each):
                found.append(each)
            elif each == WARM_UP_FOLDER:
                self.errors += link_errors(f"{self.name}/{each}", os.path.join(self.directory, each), self.followed)
            else:
                self.warn("", f"the folder {displayed(each)} is no version, and is skipped")
        if not found:
            hint = layout_hint(self.directory)
            text = f"has no version: a folder with a positive number, and the model in it{'; ' if hint else ''}"
            self.version_errors.append(ConfigError(self.name, text + hint, f"{self.name}: {text.removesuffix('; ')}"))
        return tuple(sorted(found, key=int))

    def own_options(self) -> model_options.ModelOptions:
        path = os.path.join(self.directory, YAML)
        if not os.path.lexists(path) or not self.may_follow(f"/{YAML}", path):
            return {}
        document = read_yaml(path, f"{self.name}/{YAML}", YAML_LIMIT_BYTES)
        found, errors = model_options.parse_options(document.keys, document.source)
        self.errors += (*document.errors, *errors)
        return found

    def pbtxt(self) -> ParsedConfig:
        path, name = os.path.join(self.directory, PBTXT), f"{self.name}/{PBTXT}"
        if not os.path.lexists(path) or not self.may_follow(f"/{PBTXT}", path):
            return ParsedConfig(ConfigSource(name), {})
        try:
            return read_pbtxt(read_text(path), name)
        except InvalidValue as error:
            return ParsedConfig(ConfigSource(name), {}, tuple(plain_error(name, text) for _, text in error.problems))

    def check_options(self, options: model_options.ModelOptions) -> None:
        python = options.get("python", "")
        if python and not os.access(python, os.X_OK):
            self.error(": python", f"{displayed(python)} is no program that can be run here")
        if batching_options.has_no_effect(options):
            self.warn(": batching", "has no effect: max_batch_size is 0, so requests run one by one")
        if text := model_options.cache_without_effect(options):
            self.warn(": response_cache", text)
        for size in batching_options.oversized_batches(options):
            self.error(": batching", f"{size} is more than max_batch_size, {options['max_batch_size']}")

    def specs(
        self,
        versions: tuple[str, ...],
        interpreted: InterpretedConfig,
        options: model_options.ModelOptions,
        config: dict[str, Any],
    ) -> tuple[ModelSpec, ...]:  # ModelConfig as JSON
        """The specs of the selected versions; none if the model as a whole has an error."""
        selected = interpreted.version_policy.select(versions)
        if versions and not selected:
            place = f"{self.name}/{PBTXT}: version_policy"
            self.errors.append(plain_error(place, "selects none of the existing versions"))
        for each in interpreted.version_policy.absent(versions) if selected else ():
            self.warn(f"/{PBTXT}: version_policy.specific", f"version {each} is not there; the others are served")
        is_valid = not self.errors
        fields = model_options.spec_fields(options)
        if interpreted.engine == ENSEMBLE:
            ensemble, errors = ensemble_specs(self.name, self.directory, selected, config, fields)
            self.errors += errors
            return ensemble if is_valid else ()
        found: list[ModelSpec] = []
        for version in selected if interpreted.is_engine_known else ():
            paste = ""
            directory, place = os.path.join(self.directory, version), f"{self.name}/{version}"
            try:
                if links := tuple(link_errors(place, directory, self.followed)):
                    self.version_error(version, *links)
                    continue
                artifact = select_artifact(file_names(directory, refuse=True), interpreted.engine, interpreted.artifact)
                is_class = artifact.engine == "custom"
                facts = source_facts(os.path.join(directory, artifact.file)) if is_class else SourceFacts()
                paste = lines_to_paste(f"{self.name}/{YAML}", directory, artifact, facts, options) if is_valid else ""
                check_artifact(artifact, facts, options, is_all_known=is_valid)
            except InvalidValue as error:
                quotes = bool(interpreted.artifact)  # the configuration says how the file is called
                found_error = (ConfigError if quotes else plain_error)(place, str(error))
                self.version_error(version, replace(found_error, paste=paste))
                continue
            except OSError as error:
                self.version_error(version, plain_error(place, f"cannot be read: {error.strerror}"))
                continue
            spec = ModelSpec(self.name, version, directory, artifact.file, artifact.engine, artifact.platform)
            spec = replace(spec, imports=facts.imports, interface=facts.interface, config=config, **fields)
            if len(to_json(spec)) > SPEC_LIMIT:  # at least as long as on the wire
                self.version_error(version, plain_error(place, SPEC_TOO_LONG))
                continue
            found.append(spec)
        return tuple(found) if is_valid else ()


def with_step_errors(entry: ModelEntry, models: Mapping[str, ModelEntry]) -> ModelEntry:
    """The entry; with errors in the place of its specs if it is an ensemble whose steps do not fit these models."""
    if not any(each.steps for each in entry.specs):
        return entry
    errors = step_faults(entry.specs[-1], {name: each.specs for name, each in models.items()})
    return replace(entry, specs=(), errors=(*errors, *entry.errors)) if errors else entry
