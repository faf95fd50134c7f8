"""Reads the configuration of a server: flags, environment, configuration file, defaults, in this precedence.

Covers: names and valid values of the options of `mmsup serve`, and `defaults:` and `models:` of the server's file. All
errors are collected. Only the command line (`serve`, `check`) reads the configuration; a running server keeps its
Settings. Does not cover: the models' own files (repository/scanner.py).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final

from mmsup.ipc.environment import DUMPABLE, WORKER_MARK
from mmsup.ipc.log_settings import LOG_FORMATS
from mmsup.ipc.paths import SOCKET_PATH_LIMIT, default_runtime_dir, default_state_dir, worker_socket
from mmsup.supervisor.config import model_options, units, validators
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, displayed, unknown_name
from mmsup.supervisor.config.settings import CONTROL_MODES, FRONTS, GRPC_FRONTS, LINKS, ZYGOTES, Settings
from mmsup.supervisor.config.yaml_file import ConfigSource, YamlDocument, join_key, read_yaml


@dataclass(frozen=True, slots=True)
class ServerOption:
    """One option: its field of Settings, its flag without dashes, its validator, whether it is a path, or a list."""

    field: str
    flag: str
    parse: validators.Parser[Any]  # each option has its own type
    path: bool = False
    many: bool = False

    @property
    def variable(self) -> str:
        """Name in the environment: `MMSUP_HTTP_PORT`."""
        return "MMSUP_" + self.flag.upper().replace("-", "_")

    @property
    def key(self) -> str:
        """Name in the server's file: `http_port`."""
        return self.flag.replace("-", "_")


def _model_or_all(raw: object) -> str:
    return "*" if raw == "*" else validators.model_name(raw)


def _text_or_none(raw: object) -> str:
    return "" if raw == "" else validators.text(raw)


def _budget(raw: object) -> int:
    """0 for `auto`."""
    return 0 if raw == "auto" else validators.size(model_options.MIN_MEMORY_BYTES)(raw)


def _device_budget(raw: object) -> str:
    """`cuda:1:8GiB`, or `8GiB` for each device, with the size in bytes."""
    device, _, size = str(raw).rpartition(":")
    if device and validators.device(device) in ("cpu", "auto", "cuda"):
        raise InvalidValue(f"{displayed(device)} is no single GPU; one is cuda:0, or its UUID")
    return f"{device}:{validators.size(model_options.MIN_GPU_MEMORY_BYTES)(size)}"


def _cache_config(raw: object) -> int:
    """Triton's `local,size=BYTES`; also a size alone, and 0."""
    text = str(raw).strip()
    cache, comma, setting = text.partition(",")
    if comma:
        name, _, size = setting.partition("=")
        if cache.strip() != "local" or name.strip() != "size":
            raise InvalidValue(
                f"{displayed(text)} is not local,size=SIZE: there is no other cache, and no other setting"
            )
        text = size.strip()
    return 0 if text == "0" else validators.size()(text)


def _client_memory(raw: object) -> str:
    return raw if raw in ("local", "all", "none") else "all" if validators.boolean(raw) else "none"


_MAX_MS: Final = (1 << 31) - 1
_COUNT: Final = validators.integer(0, _MAX_MS)
_MILLISECONDS: Final = validators.integer(0, _MAX_MS)
_PORT: Final = validators.integer(0, 65535)
_UID: Final = validators.integer(0, (1 << 32) - 2)

SERVER_OPTIONS: Final = (
    ServerOption("repositories", "model-repository", validators.list_of(validators.text, ":"), path=True, many=True),
    ServerOption("follow_links", "follow-links", validators.list_of(validators.text, ":"), path=True, many=True),
    ServerOption("runtime_dir", "runtime-dir", validators.text, path=True),
    ServerOption("state_dir", "state-dir", validators.text, path=True),
    ServerOption("server_name", "id", validators.text),
    ServerOption("host", "host", validators.text),
    ServerOption("http_port", "http-port", _PORT),
    ServerOption("http_unix", "http-unix", _text_or_none, path=True),
    ServerOption("allow_hosts", "allow-host", validators.list_of(validators.host_name, ","), many=True),
    ServerOption("client_memory", "allow-client-shm", _client_memory),
    ServerOption("client_memory_uids", "client-shm-user", validators.list_of(_UID, ","), many=True),
    ServerOption("grpc_host", "grpc-address", validators.text),
    ServerOption("grpc_port", "grpc-port", validators.integer(-1, 65535)),
    ServerOption("grpc_unix", "grpc-unix", _text_or_none, path=True),
    ServerOption("grpc_front", "grpc-front", validators.one_of(GRPC_FRONTS)),
    ServerOption("grpc_keepalive_time_ms", "grpc-keepalive-time", _MILLISECONDS),
    ServerOption("grpc_keepalive_timeout_ms", "grpc-keepalive-timeout", validators.integer(1, _MAX_MS)),
    ServerOption("grpc_keepalive_without_calls", "grpc-keepalive-permit-without-calls", validators.boolean),
    ServerOption("grpc_max_pings_without_data", "grpc-http2-max-pings-without-data", _COUNT),
    ServerOption("grpc_min_ping_interval_ms", "grpc-http2-min-recv-ping-interval-without-data", _MILLISECONDS),
    ServerOption("grpc_max_ping_strikes", "grpc-http2-max-ping-strikes", _COUNT),
    ServerOption("grpc_max_connection_age_ms", "grpc-max-connection-age", _MILLISECONDS),
    ServerOption("grpc_max_connection_age_grace_ms", "grpc-max-connection-age-grace", _MILLISECONDS),
    ServerOption("metrics_host", "metrics-address", validators.text),
    ServerOption("metrics_port", "metrics-port", validators.integer(-1, 65535)),
    ServerOption("gateways", "gateways", validators.integer(1, 64)),
    ServerOption("spare_gateway", "spare-gateway", validators.boolean),
    ServerOption("control_mode", "model-control-mode", validators.one_of(CONTROL_MODES)),
    ServerOption("load_models", "load-model", validators.list_of(_model_or_all, ","), many=True),
    ServerOption("poll_s", "repository-poll-secs", validators.duration),
    ServerOption("strict_readiness", "strict-readiness", validators.boolean),
    ServerOption("startup_grace_s", "startup-grace", units.duration),
    ServerOption("exit_on_error", "exit-on-error", validators.boolean),
    ServerOption("max_body_bytes", "http-max-input-size", validators.size()),
    ServerOption("arena_bytes", "arena-size", validators.size(1 << 20)),
    ServerOption("cache_bytes", "cache-config", _cache_config),
    ServerOption("max_requests", "max-requests", validators.integer(2, 1 << 20)),
    ServerOption("max_request_bytes", "max-request-bytes", validators.size(1 << 20)),
    ServerOption("memory_budget_bytes", "memory-budget", _budget),
    ServerOption("gpu_memory_budgets", "gpu-memory-budget", validators.list_of(_device_budget, ","), many=True),
    ServerOption("restart_grace_s", "restart-grace", units.duration),
    ServerOption("cold_start_timeout_s", "cold-start-timeout", units.duration),
    ServerOption("max_cold_requests", "max-cold-requests", validators.integer(1, 1 << 20)),
    ServerOption("max_cold_bytes", "max-cold-bytes", validators.size(1 << 20)),
    ServerOption("front", "http-front", validators.one_of(FRONTS)),
    ServerOption("link", "worker-link", validators.one_of(LINKS)),
    ServerOption("zygotes", "zygotes", validators.one_of(ZYGOTES)),
    ServerOption("max_parallel_loads", "model-load-thread-count", validators.integer(1, 256)),
    ServerOption("allow_model_uploads", "allow-model-uploads", validators.boolean),
    ServerOption("allow_code_uploads", "allow-code-uploads", validators.boolean),
    ServerOption("max_upload_bytes", "max-upload-bytes", validators.size(1 << 20)),
    ServerOption("exit_timeout_s", "exit-timeout-secs", units.duration),
    ServerOption("kill_limit_s", "kill-limit", validators.duration),
    ServerOption("log_format", "log-format", validators.one_of(LOG_FORMATS)),
    ServerOption("log_info", "log-info", validators.boolean),
    ServerOption("log_warning", "log-warning", validators.boolean),
    ServerOption("log_error", "log-error", validators.boolean),
    ServerOption("log_verbose", "log-verbose", validators.integer(0, 9)),
)
CONFIG_VARIABLE: Final = "MMSUP_CONFIG"
FAULT_POINTS_VARIABLE: Final = "MMSUP_FAULT_POINTS"
"""For tests, therefore neither a flag nor a key of the file: no forgotten line may enable failpoints."""
GPU_DRIVER_VARIABLE: Final = "MMSUP_GPU_DRIVER"
"""For kernels with another device file of the driver: a property of the machine, not an option of the server."""
OTHER_VARIABLES: Final = ("MMSUP_INSECURE", FAULT_POINTS_VARIABLE, GPU_DRIVER_VARIABLE, DUMPABLE, WORKER_MARK)
"""The first belongs to `--insecure`, which is not part of Settings, and is read by click."""
_SECTIONS: Final = ("defaults", "models")
_DEFAULTS: Final = {each.name: each.default for each in fields(Settings) if each.default is not MISSING}


@dataclass(frozen=True, slots=True)
class OptionOrigin:
    """A value in force and its origin: `flag`, `environment MMSUP_…`, `file:line`, `default`."""

    option: str
    value: Any  # of the option's type
    source: str


@dataclass(frozen=True, slots=True)
class ConfigResult:
    """`settings` is None if there are errors."""

    settings: Settings | None
    errors: tuple[ConfigError, ...]
    warnings: tuple[ConfigError, ...]
    origins: tuple[OptionOrigin, ...]


def read_config(flags: Mapping[str, object], environ: Mapping[str, str], uid: int) -> ConfigResult:
    """Combine flags, environment and file. `flags`: only the given ones, by field of Settings, and `config` for the
    file."""
    strange = flags.keys() - {each.field for each in SERVER_OPTIONS} - {"config"}
    assert not strange, f"no option has these fields: {strange}"
    config_path = flags["config"] if "config" in flags else environ.get(CONFIG_VARIABLE, "")  # --config '' is no file
    document = read_yaml(str(config_path), str(config_path)) if config_path else YamlDocument(ConfigSource(""), {})
    reader = _OptionReader(document, os.path.dirname(str(config_path)))
    reader.errors += document.errors
    for option in SERVER_OPTIONS:
        reader.read_option(option, flags, environ)
    reader.set_default("runtime_dir", default_runtime_dir(uid, dict(environ)))
    reader.set_default("state_dir", default_state_dir(uid, dict(environ)))
    if "host" in reader.values:
        reader.set_default("metrics_host", reader.values["host"], "as host")
        reader.set_default("grpc_host", reader.values["host"], "as host")
    reader.read_sections()
    reader.check_keys()
    reader.check_combinations()
    reader.values["grpc_is_wanted"] = "grpc_port" in reader.sources
    reader.values["fault_points"] = environ.get(FAULT_POINTS_VARIABLE, "")
    reader.values["gpu_driver"] = environ.get(GPU_DRIVER_VARIABLE) or _DEFAULTS["gpu_driver"]
    settings = None if reader.errors else Settings(**reader.values)
    warnings = _unknown_variables(environ)
    if environ.get(FAULT_POINTS_VARIABLE):
        text = "is for tests: this server fails where the file says so"
        warnings += (ConfigError(FAULT_POINTS_VARIABLE, text),)
    return ConfigResult(settings, tuple(reader.errors), warnings, reader.origins())


@dataclass(slots=True)
class _OptionReader:
    """Collects values by field of Settings, their origins, and errors."""

    document: YamlDocument
    folder: str
    values: dict[str, Any] = field(default_factory=dict[str, Any])  # arguments of Settings
    sources: dict[str, str] = field(default_factory=dict[str, str])
    errors: list[ConfigError] = field(default_factory=list[ConfigError])
    invalid: set[str] = field(default_factory=set[str])

    def read_option(self, option: ServerOption, flags: Mapping[str, object], environ: Mapping[str, str]) -> None:
        """Read an option from the place of highest precedence that has it."""
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
        except InvalidValue as error:
            self.errors += [ConfigError(place, text) for _, text in error.problems]
            self.invalid.add(option.field)
            return
        values: list[Any] = value if option.many else [value]
        if option.path:
            # Relative to the folder of the file that contains it; empty stays empty.
            values = [os.path.abspath(os.path.join(folder, each)) if each else "" for each in values]
        self.values[option.field] = tuple(values) if option.many else values[0]
        self.sources[option.field] = source

    def set_default(self, name: str, value: object, source: str = "default") -> None:
        if name not in self.values and name not in self.invalid:
            self.values[name] = value
            self.sources[name] = source

    def read_sections(self) -> None:
        raw, source = self.document.keys, self.document.source
        if "defaults" in raw:
            self.values["defaults"], errors = model_options.parse_options(raw["defaults"], source, "defaults")
            self.errors += errors
        try:
            given = raw.get("models")
            models = validators.mapping({} if given is None else given, "mapping of models by name")
        except InvalidValue as error:
            self.errors += [ConfigError(source.place("models"), text) for _, text in error.problems]
            return
        self.values["models"] = {}
        for name, each in models.items():
            place = join_key("models", name)
            try:
                self.values["models"][validators.model_pattern(name)], errors = model_options.parse_options(
                    each, source, place
                )
                self.errors += errors
            except InvalidValue as error:
                self.errors += [ConfigError(source.place(place), text) for _, text in error.problems]

    def check_keys(self) -> None:
        """An unknown key is an error: it was meant to have an effect."""
        known = {each.key for each in SERVER_OPTIONS} | set(_SECTIONS)
        for key in self.document.keys:
            if key not in known:
                self.errors.append(ConfigError(self.document.source.place(key), unknown_name(key, known)))

    def check_combinations(self) -> None:
        found = self.values
        if not found.get("repositories") and "repositories" not in self.invalid:
            self.errors.append(ConfigError("--model-repository", "is missing: the folder that holds the models"))
        ports = {name: found.get(name, _DEFAULTS[name]) for name in ("http_port", "grpc_port", "metrics_port")}
        if not self.invalid & set(ports):
            if ports["metrics_port"] == ports["http_port"] > 0:
                self._error("metrics_port", f"{ports['metrics_port']} is the HTTP port; -1 leaves /metrics to that")
            for name in ("http_port", "metrics_port"):
                if ports["grpc_port"] == ports[name] > 0 and "grpc_port" in found:  # else it gives way, with a warning
                    text = f"{ports['grpc_port']} is the port of {name.removesuffix('_port')} too; -1 serves no gRPC"
                    self._error("grpc_port", text)
        if found.get("load_models") and found.get("control_mode") != "explicit" and "control_mode" not in self.invalid:
            self._error("load_models", "has an effect with --model-control-mode explicit alone")
        if "runtime_dir" in found and _too_long(worker_socket(found["runtime_dir"], 99999, 9999999)):
            self._error("runtime_dir", "is too long: the path of a socket ends at 107 bytes")
        if found.get("grpc_front") == "grpcio" and importlib.util.find_spec("grpc") is None:
            self._error("grpc_front", "needs the grpcio library, which is not installed: pip install 'mmsup[grpc]'")
        for name in ("http_unix", "grpc_unix"):
            if _too_long(found.get(name, "")):
                self._error(name, "is too long: the path of a socket ends at 107 bytes")

    def _error(self, name: str, text: str) -> None:
        """At the place from which the value comes."""
        option = next(each for each in SERVER_OPTIONS if each.field == name)
        source = self.sources.get(name, "default")
        place = f"--{option.flag}" if source in ("flag", "default") else f"{source}: {option.key}"
        self.errors.append(ConfigError(option.variable if source.startswith("environment ") else place, text))

    def origins(self) -> tuple[OptionOrigin, ...]:
        """Every valid option with its value and origin, in the order of SERVER_OPTIONS."""
        values = {**_DEFAULTS, **self.values}
        return tuple(
            OptionOrigin(each.key, values[each.field], self.sources.get(each.field, "default"))
            for each in SERVER_OPTIONS
            if each.field in values and each.field not in self.invalid
        )


def _too_long(path: str) -> bool:
    return len(os.fsencode(path)) > SOCKET_PATH_LIMIT


def _unknown_variables(environ: Mapping[str, str]) -> tuple[ConfigError, ...]:
    """Only a warning, since Kubernetes sets variables such as MMSUP_SERVICE_HOST for a service of that name."""
    known = {each.variable for each in SERVER_OPTIONS} | {CONFIG_VARIABLE, *OTHER_VARIABLES}
    return tuple(
        ConfigError(name, unknown_name(name, known))
        for name in sorted(environ)
        if name.startswith("MMSUP_") and name not in known
    )
