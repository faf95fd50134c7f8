"""What the server was told, weighed: flag > environment > file > default. The one reader of configuration.

Covers: the options of `mmsup serve`, their names in all four places, and `defaults:` and `models:` of the server's
file. Faults are collected, never raised: the caller gets Settings or all of them. Called by the command line (`serve`,
`check`) and, at SIGHUP, by nobody else: the brain lives by the Settings it was given.
Does not cover: the models' own files (repository.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from mmsup.ipc.paths import SOCKET_PATH_LIMIT, default_runtime_dir, default_state_dir, worker_socket
from mmsup.supervisor.config import model_options, units
from mmsup.supervisor.config import validators as valid
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, unknown_name
from mmsup.supervisor.config.settings import CONTROL_MODES, FRONTS, LINKS, Settings
from mmsup.supervisor.config.yaml_file import ConfigSource, YamlDocument, join_key, read_yaml

LOG_FORMATS: Final = ("auto", "default", "json")


@dataclass(frozen=True, slots=True)
class ServerOption:
    """One option: the field of Settings, the flag without its dashes, what is valid, whether it is a path, or many.

    The environment has it as `MMSUP_` and the flag in capitals, the file as the flag with underscores.
    """

    field: str
    flag: str
    parse: valid.Parser[Any]  # each option has its own type
    path: bool = False
    many: bool = False

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "MMSUP_" + self.flag.upper().replace("-", "_")

    @property
    def key(self) -> str:
        """Its name in the server's file."""
        return self.flag.replace("-", "_")


def _log_format(raw: object) -> str:
    return "default" if raw == "ISO8601" else valid.one_of(LOG_FORMATS)(raw)  # Triton's name for its text format


def _model_or_all(raw: object) -> str:
    return "*" if raw == "*" else valid.model_name(raw)


def _text_or_none(raw: object) -> str:
    return "" if raw == "" else valid.text(raw)


_PORT: Final = valid.integer(0, 65535)

SERVER_OPTIONS: Final = (
    ServerOption("repositories", "model-repository", valid.list_of(valid.text, ":"), path=True, many=True),
    ServerOption("runtime_dir", "runtime-dir", valid.text, path=True),
    ServerOption("state_dir", "state-dir", valid.text, path=True),
    ServerOption("server_name", "id", valid.text),
    ServerOption("host", "host", valid.text),
    ServerOption("http_port", "http-port", _PORT),
    ServerOption("http_unix", "http-unix", _text_or_none, path=True),
    ServerOption("metrics_host", "metrics-address", valid.text),
    ServerOption("metrics_port", "metrics-port", valid.integer(-1, 65535)),
    ServerOption("gateways", "gateways", valid.integer(1, 64)),
    ServerOption("spare_gateway", "spare-gateway", valid.boolean),
    ServerOption("control_mode", "model-control-mode", valid.one_of(CONTROL_MODES)),
    ServerOption("load_models", "load-model", valid.list_of(_model_or_all, ","), many=True),
    ServerOption("poll_s", "repository-poll-secs", valid.duration),
    ServerOption("strict_readiness", "strict-readiness", valid.boolean),
    ServerOption("exit_on_error", "exit-on-error", valid.boolean),
    ServerOption("max_body_bytes", "http-max-input-size", valid.size()),
    ServerOption("arena_bytes", "arena-size", valid.size(1 << 20)),
    ServerOption("max_requests", "max-requests", valid.integer(2, 1 << 20)),
    ServerOption("max_request_bytes", "max-request-bytes", valid.size(1 << 20)),
    ServerOption("restart_grace_s", "restart-grace", units.duration),
    ServerOption("front", "http-front", valid.one_of(FRONTS)),
    ServerOption("link", "worker-link", valid.one_of(LINKS)),
    ServerOption("max_parallel_loads", "model-load-thread-count", valid.integer(1, 256)),
    ServerOption("exit_timeout_s", "exit-timeout-secs", units.duration),
    ServerOption("kill_limit_s", "kill-limit", valid.duration),
    ServerOption("log_format", "log-format", _log_format),
    ServerOption("log_verbose", "log-verbose", valid.integer(0, 9)),
)
CONFIG_VARIABLE: Final = "MMSUP_CONFIG"
FAULT_POINTS_VARIABLE: Final = "MMSUP_FAULT_POINTS"
"""For tests, and so neither flag nor key of the file: no line that was left in a configuration arms a server."""
GPU_DRIVER_VARIABLE: Final = "MMSUP_GPU_DRIVER"
"""For kernels whose driver shows itself elsewhere; no setting of a server's, but a fact of its machine."""
OTHER_VARIABLES: Final = ("MMSUP_INSECURE", FAULT_POINTS_VARIABLE, GPU_DRIVER_VARIABLE)
"""The first is read by click, for a flag that is a word of agreement and no option."""
_SECTIONS: Final = ("defaults", "models")
_DEFAULTS: Final = {each.name: each.default for each in fields(Settings) if each.default is not MISSING}


@dataclass(frozen=True, slots=True)
class OptionOrigin:
    """One value in force and where it came from: `flag`, `environment MMSUP_…`, `file:line`, `default`."""

    option: str
    value: Any  # of the option's type
    source: str


@dataclass(frozen=True, slots=True)
class ConfigResult:
    """All that came of reading the configuration; `settings` is None if there are faults."""

    settings: Settings | None
    errors: tuple[ConfigError, ...]
    warnings: tuple[ConfigError, ...]
    origins: tuple[OptionOrigin, ...]


def explain(flags: Mapping[str, object], environ: Mapping[str, str], uid: int) -> tuple[OptionOrigin, ...]:
    """Where each value came from, for `mmsup check --explain`; a faulty value is not among them."""
    return read_config(flags, environ, uid).origins


def read_config(flags: Mapping[str, object], environ: Mapping[str, str], uid: int) -> ConfigResult:
    """Weigh flags, environment and file; nothing is raised, whatever they hold. `flags`: only those given, by the
    fields of Settings, and `config` for the file."""
    strange = flags.keys() - {each.field for each in SERVER_OPTIONS} - {"config"}
    assert not strange, f"no option has these fields: {strange}"
    config_path = flags.get("config") or environ.get(CONFIG_VARIABLE, "")
    document = read_yaml(str(config_path), str(config_path)) if config_path else YamlDocument(ConfigSource(""), {})
    weighing = _OptionReader(document, os.path.dirname(str(config_path)))
    weighing.errors += document.errors
    for option in SERVER_OPTIONS:
        weighing.read_option(option, flags, environ)
    weighing.set_default("runtime_dir", default_runtime_dir(uid, dict(environ)))
    weighing.set_default("state_dir", default_state_dir(uid, dict(environ)))
    if "host" in weighing.values:
        weighing.set_default("metrics_host", weighing.values["host"], "as host")
    weighing.read_sections()
    weighing.check_keys()
    weighing.check_combinations()
    weighing.values["fault_points"] = environ.get(FAULT_POINTS_VARIABLE, "")
    weighing.values["gpu_driver"] = environ.get(GPU_DRIVER_VARIABLE) or _DEFAULTS["gpu_driver"]
    settings = None if weighing.errors else Settings(**weighing.values)
    warnings = _unknown_variables(environ) + _failpoint_warnings(environ)
    return ConfigResult(settings, tuple(weighing.errors), warnings, weighing.origins())


@dataclass(slots=True)
class _OptionReader:
    """Values found so far, by field; where they came from; and what was wrong."""

    document: YamlDocument
    folder: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])  # arguments of Settings
    sources: dict[str, str] = field(default_factory=dict[str, str])
    errors: list[ConfigError] = field(default_factory=list[ConfigError])
    invalid: set[str] = field(default_factory=set[str])

    def read_option(self, option: ServerOption, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
        """Take an option from the first place that has it."""
        file = self.document
        if option.field in flags:
            self._set(option, flags[option.field], "flag", f"--{option.flag}", os.getcwd())
        elif environ.get(option.variable):
            self._set(option, environ[option.variable], f"environment {option.variable}", option.variable, os.getcwd())
        elif option.key in file.keys:
            place = file.source.place(option.key)
            self._set(option, file.keys[option.key], place.removesuffix(f": {option.key}"), place, self.folder)

    def _set(self, option: ServerOption, raw: object, source: str, place: str, folder: str) -> None:
        try:
            value: Any = option.parse(raw)  # of the option's type
        except InvalidValue as wrong:
            self.errors += [ConfigError(place, text) for _, text in wrong.problems]
            self.invalid.add(option.field)
            return
        values: list[Any] = value if option.many else [value]
        if option.path:
            values = [_absolute(each, folder) for each in values]
        self.values[option.field] = tuple(values) if option.many else values[0]
        self.sources[option.field] = source

    def set_default(self, name: str, value: object, source: str = "default") -> None:
        """The value of an option whose default is not a constant."""
        if name not in self.values and name not in self.invalid:
            self.values[name] = value
            self.sources[name] = source

    def read_sections(self) -> None:
        """`defaults:` and `models:`, each the keys of a model."""
        raw, source = self.document.keys, self.document.source
        if "defaults" in raw:
            self.values["defaults"], faults = model_options.parse_options(raw["defaults"], source, "defaults")
            self.errors += faults
        try:
            given = raw.get("models")
            models = valid.mapping({} if given is None else given, "mapping of models by name")
        except InvalidValue as wrong:
            self.errors += [ConfigError(source.place("models"), text) for _, text in wrong.problems]
            return
        self.values["models"] = {}
        for name, each in models.items():
            place = join_key("models", name)
            try:
                self.values["models"][valid.model_name(name)], faults = model_options.parse_options(each, source, place)
                self.errors += faults
            except InvalidValue as wrong:
                self.errors += [ConfigError(source.place(place), text) for _, text in wrong.problems]

    def check_keys(self) -> None:
        """A key that no option has is a fault: it was meant to do something."""
        known = {each.key for each in SERVER_OPTIONS} | set(_SECTIONS)
        for key in self.document.keys:
            if key not in known:
                self.errors.append(ConfigError(self.document.source.place(key), unknown_name(key, known)))

    def check_combinations(self) -> None:
        """What is wrong only of several options at once."""
        found, place = self.values, self._place
        if not found.get("repositories") and "repositories" not in self.invalid:
            self.errors.append(ConfigError("--model-repository", "is missing: the folder that holds the models"))
        ports = [found.get(name, _DEFAULTS[name]) for name in ("http_port", "metrics_port")]
        if ports[0] == ports[1] > 0 and not self.invalid & {"http_port", "metrics_port"}:
            self.errors.append(
                ConfigError(place("metrics_port"), f"{ports[1]} is the HTTP port; -1 leaves /metrics to that")
            )
        if found.get("load_models") and found.get("control_mode") != "explicit" and "control_mode" not in self.invalid:
            self.errors.append(
                ConfigError(place("load_models"), "has an effect with --model-control-mode explicit alone")
            )
        if "runtime_dir" in found and _too_long(worker_socket(found["runtime_dir"], 99999, 9999999)):
            self.errors.append(ConfigError(place("runtime_dir"), "is too long: the path of a socket ends at 107 bytes"))
        if _too_long(found.get("http_unix", "")):
            self.errors.append(ConfigError(place("http_unix"), "is too long: the path of a socket ends at 107 bytes"))

    def _place(self, name: str) -> str:
        option = next(each for each in SERVER_OPTIONS if each.field == name)
        source = self.sources.get(name, "default")
        if source.startswith("environment "):
            return option.variable
        return f"--{option.flag}" if source in ("flag", "default") else f"{source}: {option.key}"

    def origins(self) -> tuple[OptionOrigin, ...]:
        """Every option with its value and source, in the order of the table."""
        values = {**_DEFAULTS, **self.values}
        return tuple(
            OptionOrigin(each.key, values[each.field], self.sources.get(each.field, "default"))
            for each in SERVER_OPTIONS
            if each.field in values and each.field not in self.invalid
        )


def _absolute(value: str, folder: str) -> str:
    """A path, seen from the folder of the file that named it; no path stays none."""
    return os.path.abspath(os.path.join(folder, value)) if value else ""


def _too_long(path: str) -> bool:
    return len(os.fsencode(path)) > SOCKET_PATH_LIMIT


def _failpoint_warnings(environ: Mapping[str, str]) -> tuple[ConfigError, ...]:
    text = "is for tests: this server fails where the file says so"
    return (ConfigError(FAULT_POINTS_VARIABLE, text),) if environ.get(FAULT_POINTS_VARIABLE) else ()


def _unknown_variables(environ: Mapping[str, str]) -> tuple[ConfigError, ...]:
    """Variables that look like ours and are not: a warning, since a cluster puts its own MMSUP_SERVICE_HOST there."""
    known = {each.variable for each in SERVER_OPTIONS} | {CONFIG_VARIABLE, *OTHER_VARIABLES}
    return tuple(
        ConfigError(name, unknown_name(name, known))
        for name in sorted(environ)
        if name.startswith("MMSUP_") and name not in known
    )
