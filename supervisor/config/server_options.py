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
from mmsup.supervisor.config.config_error import Fault, Wrong, unknown
from mmsup.supervisor.config.settings import CONTROL_MODES, FRONTS, LINKS, Settings
from mmsup.supervisor.config.yaml_file import Document, Source, below, read_yaml

LOG_FORMATS: Final = ("auto", "default", "json")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the field of Settings, the flag without its dashes, what is valid, whether it is a path, or many.

    The environment has it as `MMSUP_` and the flag in capitals, the file as the flag with underscores.
    """

    field: str
    flag: str
    valid: valid.Valid[Any]  # each option has its own type
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


def _loaded(raw: object) -> str:
    return "*" if raw == "*" else valid.model_name(raw)


def _text_or_none(raw: object) -> str:
    return "" if raw == "" else valid.text(raw)


_PORT: Final = valid.integer(0, 65535)

OPTIONS: Final = (
    Option("repositories", "model-repository", valid.listed(valid.text, ":"), path=True, many=True),
    Option("runtime_dir", "runtime-dir", valid.text, path=True),
    Option("state_dir", "state-dir", valid.text, path=True),
    Option("server_name", "id", valid.text),
    Option("host", "host", valid.text),
    Option("http_port", "http-port", _PORT),
    Option("http_unix", "http-unix", _text_or_none, path=True),
    Option("metrics_host", "metrics-address", valid.text),
    Option("metrics_port", "metrics-port", valid.integer(-1, 65535)),
    Option("gateways", "gateways", valid.integer(1, 64)),
    Option("spare_gateway", "spare-gateway", valid.boolean),
    Option("control_mode", "model-control-mode", valid.one_of(CONTROL_MODES)),
    Option("load_models", "load-model", valid.listed(_loaded, ","), many=True),
    Option("poll_s", "repository-poll-secs", valid.duration),
    Option("strict_readiness", "strict-readiness", valid.boolean),
    Option("exit_on_error", "exit-on-error", valid.boolean),
    Option("max_body_bytes", "http-max-input-size", valid.size()),
    Option("arena_bytes", "arena-size", valid.size(1 << 20)),
    Option("max_requests", "max-requests", valid.integer(2, 1 << 20)),
    Option("max_request_bytes", "max-request-bytes", valid.size(1 << 20)),
    Option("restart_grace_s", "restart-grace", units.duration),
    Option("front", "http-front", valid.one_of(FRONTS)),
    Option("link", "worker-link", valid.one_of(LINKS)),
    Option("max_parallel_loads", "model-load-thread-count", valid.integer(1, 256)),
    Option("exit_timeout_s", "exit-timeout-secs", units.duration),
    Option("kill_limit_s", "kill-limit", valid.duration),
    Option("log_format", "log-format", _log_format),
    Option("log_verbose", "log-verbose", valid.integer(0, 9)),
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
class Origin:
    """One value in force and where it came from: `flag`, `environment MMSUP_…`, `file:line`, `default`."""

    option: str
    value: Any  # of the option's type
    source: str


@dataclass(frozen=True, slots=True)
class Reading:
    """All that came of reading the configuration; `settings` is None if there are faults."""

    settings: Settings | None
    faults: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    origins: tuple[Origin, ...]


def explain(flags: Mapping[str, object], environ: Mapping[str, str], uid: int) -> tuple[Origin, ...]:
    """Where each value came from, for `mmsup check --explain`; a faulty value is not among them."""
    return read(flags, environ, uid).origins


def read(flags: Mapping[str, object], environ: Mapping[str, str], uid: int) -> Reading:
    """Weigh flags, environment and file; nothing is raised, whatever they hold. `flags`: only those given, by the
    fields of Settings, and `config` for the file."""
    strange = flags.keys() - {each.field for each in OPTIONS} - {"config"}
    assert not strange, f"no option has these fields: {strange}"
    config_path = flags.get("config") or environ.get(CONFIG_VARIABLE, "")
    document = read_yaml(str(config_path), str(config_path)) if config_path else Document(Source(""), {})
    weighing = _Weighing(document, os.path.dirname(str(config_path)))
    weighing.faults += document.faults
    for option in OPTIONS:
        weighing.weigh(option, flags, environ)
    weighing.default("runtime_dir", default_runtime_dir(uid, dict(environ)))
    weighing.default("state_dir", default_state_dir(uid, dict(environ)))
    if "host" in weighing.found:
        weighing.default("metrics_host", weighing.found["host"], "as host")
    weighing.sections()
    weighing.unknown_keys()
    weighing.together()
    weighing.found["fault_points"] = environ.get(FAULT_POINTS_VARIABLE, "")
    weighing.found["gpu_driver"] = environ.get(GPU_DRIVER_VARIABLE) or _DEFAULTS["gpu_driver"]
    settings = None if weighing.faults else Settings(**weighing.found)
    warnings = _unknown_variables(environ) + _armed(environ)
    return Reading(settings, tuple(weighing.faults), warnings, weighing.explained())


@dataclass(slots=True)
class _Weighing:
    """Values found so far, by field; where they came from; and what was wrong."""

    document: Document
    folder: str
    found: dict[str, Any] = field(default_factory=dict[str, Any])  # arguments of Settings
    sources: dict[str, str] = field(default_factory=dict[str, str])
    faults: list[Fault] = field(default_factory=list[Fault])
    wrong: set[str] = field(default_factory=set[str])

    def weigh(self, option: Option, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
        """Take an option from the first place that has it."""
        file = self.document
        if option.field in flags:
            self._take(option, flags[option.field], "flag", f"--{option.flag}", os.getcwd())
        elif environ.get(option.variable):
            self._take(option, environ[option.variable], f"environment {option.variable}", option.variable, os.getcwd())
        elif option.key in file.keys:
            place = file.source.place(option.key)
            self._take(option, file.keys[option.key], place.removesuffix(f": {option.key}"), place, self.folder)

    def _take(self, option: Option, raw: object, source: str, place: str, folder: str) -> None:
        try:
            value: Any = option.valid(raw)  # of the option's type
        except Wrong as wrong:
            self.faults += [Fault(place, text) for _, text in wrong.wrongs]
            self.wrong.add(option.field)
            return
        values: list[Any] = value if option.many else [value]
        if option.path:
            values = [_absolute(each, folder) for each in values]
        self.found[option.field] = tuple(values) if option.many else values[0]
        self.sources[option.field] = source

    def default(self, name: str, value: object, source: str = "default") -> None:
        """The value of an option whose default is not a constant."""
        if name not in self.found and name not in self.wrong:
            self.found[name] = value
            self.sources[name] = source

    def sections(self) -> None:
        """`defaults:` and `models:`, each the keys of a model."""
        raw, source = self.document.keys, self.document.source
        if "defaults" in raw:
            self.found["defaults"], faults = model_options.checked(raw["defaults"], source, "defaults")
            self.faults += faults
        try:
            given = raw.get("models")
            models = valid.mapping({} if given is None else given, "mapping of models by name")
        except Wrong as wrong:
            self.faults += [Fault(source.place("models"), text) for _, text in wrong.wrongs]
            return
        self.found["models"] = {}
        for name, each in models.items():
            place = below("models", name)
            try:
                self.found["models"][valid.model_name(name)], faults = model_options.checked(each, source, place)
                self.faults += faults
            except Wrong as wrong:
                self.faults += [Fault(source.place(place), text) for _, text in wrong.wrongs]

    def unknown_keys(self) -> None:
        """A key that no option has is a fault: it was meant to do something."""
        known = {each.key for each in OPTIONS} | set(_SECTIONS)
        for key in self.document.keys:
            if key not in known:
                self.faults.append(Fault(self.document.source.place(key), unknown(key, known)))

    def together(self) -> None:
        """What is wrong only of several options at once."""
        found, place = self.found, self._place
        if not found.get("repositories") and "repositories" not in self.wrong:
            self.faults.append(Fault("--model-repository", "is missing: the folder that holds the models"))
        ports = [found.get(name, _DEFAULTS[name]) for name in ("http_port", "metrics_port")]
        if ports[0] == ports[1] > 0 and not self.wrong & {"http_port", "metrics_port"}:
            self.faults.append(Fault(place("metrics_port"), f"{ports[1]} is the HTTP port; -1 leaves /metrics to that"))
        if found.get("load_models") and found.get("control_mode") != "explicit" and "control_mode" not in self.wrong:
            self.faults.append(Fault(place("load_models"), "has an effect with --model-control-mode explicit alone"))
        if "runtime_dir" in found and _too_long(worker_socket(found["runtime_dir"], 99999, 9999999)):
            self.faults.append(Fault(place("runtime_dir"), "is too long: the path of a socket ends at 107 bytes"))
        if _too_long(found.get("http_unix", "")):
            self.faults.append(Fault(place("http_unix"), "is too long: the path of a socket ends at 107 bytes"))

    def _place(self, name: str) -> str:
        option = next(each for each in OPTIONS if each.field == name)
        source = self.sources.get(name, "default")
        if source.startswith("environment "):
            return option.variable
        return f"--{option.flag}" if source in ("flag", "default") else f"{source}: {option.key}"

    def explained(self) -> tuple[Origin, ...]:
        """Every option with its value and source, in the order of the table."""
        values = {**_DEFAULTS, **self.found}
        return tuple(
            Origin(each.key, values[each.field], self.sources.get(each.field, "default"))
            for each in OPTIONS
            if each.field in values and each.field not in self.wrong
        )


def _absolute(value: str, folder: str) -> str:
    """A path, seen from the folder of the file that named it; no path stays none."""
    return os.path.abspath(os.path.join(folder, value)) if value else ""


def _too_long(path: str) -> bool:
    return len(os.fsencode(path)) > SOCKET_PATH_LIMIT


def _armed(environ: Mapping[str, str]) -> tuple[Fault, ...]:
    text = "is for tests: this server fails where the file says so"
    return (Fault(FAULT_POINTS_VARIABLE, text),) if environ.get(FAULT_POINTS_VARIABLE) else ()


def _unknown_variables(environ: Mapping[str, str]) -> tuple[Fault, ...]:
    """Variables that look like ours and are not: a warning, since a cluster puts its own MMSUP_SERVICE_HOST there."""
    known = {each.variable for each in OPTIONS} | {CONFIG_VARIABLE, *OTHER_VARIABLES}
    return tuple(
        Fault(name, unknown(name, known)) for name in sorted(environ) if name.startswith("MMSUP_") and name not in known
    )
