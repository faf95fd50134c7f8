"""The flags of `mmsup serve` and `mmsup check`: how each reads on the command line, one sentence each.

The options themselves, with their names and what is valid, are config.py's; a value is handed on as the text that was
given, so that all faults are said together. Here stand besides them: Triton's names for the same thing, and Triton's
flags that are taken without effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import click

from mmsup.supervisor.config.server_options import SERVER_OPTIONS
from mmsup.supervisor.config.settings import CONTROL_MODES, Settings

F = TypeVar("F", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """How one option reads: what stands for its value, a sentence, whether it may be given again, other names,
    and whether its default is a constant."""

    value: str
    help: str
    many: bool = False
    aliases: tuple[str, ...] = ()
    constant: bool = True


BOOL: Final = "BOOL"
_DIR: Final = "DIR"

FLAGS: Final[Mapping[str, Flag]] = {
    "repositories": Flag(_DIR, "A directory of models; may be given again.", many=True, aliases=("--model-store",)),
    "control_mode": Flag("|".join(CONTROL_MODES), "Which models start, and who may load."),
    "load_models": Flag("NAME", "A model to load in explicit mode; * is all; may be given again.", many=True),
    "poll_s": Flag("S", "How often poll mode looks."),
    "max_parallel_loads": Flag("N", "Models that load at one time."),
    "host": Flag("ADDRESS", "What the listeners bind.", aliases=("--http-address",)),
    "http_port": Flag("PORT", "Port of the HTTP listener; 0 is any free one."),
    "http_unix": Flag("PATH", "A UNIX socket to serve HTTP on as well."),
    "max_body_bytes": Flag("BYTES", "Largest request body."),
    "metrics_host": Flag("ADDRESS", "What the metrics listener binds, if not the same.", constant=False),
    "metrics_port": Flag("PORT", "Port of the metrics listener; -1 leaves /metrics to the HTTP port."),
    "gateways": Flag("N", "Gateway processes."),
    "spare_gateway": Flag(BOOL, "Keep one more started, for the place of one that ends."),
    "arena_bytes": Flag("SIZE", "Shared memory for tensors, each gateway."),
    "max_requests": Flag("N", "Requests open at a time, each gateway, shared by all models."),
    "max_request_bytes": Flag("SIZE", "Bytes of their bodies, likewise."),
    "restart_grace_s": Flag("S", "How long a request waits for a model that is coming back."),
    "front": Flag("fast|plain", "Who serves inferences: the fast front, or aiohttp as everything else."),
    "link": Flag("pair|zeromq", "What carries requests between gateways and workers."),
    "strict_readiness": Flag(BOOL, "Not ready while any wanted model is not."),
    "exit_on_error": Flag(BOOL, "End if a model fails at the start."),
    "exit_timeout_s": Flag("S", "How long a stop waits for requests in flight."),
    "kill_limit_s": Flag("S", "How long a killed worker may take to die before it is given up."),
    "server_name": Flag("NAME", "The server's name in its metadata."),
    "runtime_dir": Flag(_DIR, "Sockets and the lock; how ctl finds the server."),
    "state_dir": Flag(_DIR, "What outlives a restart."),
    "log_format": Flag("FORMAT", "auto, default (text) or json (lines)."),
    "log_verbose": Flag("N", "More to read, from 1 on."),
}
"""By field of Settings, in the order of the help."""

NO_GRPC: Final = "gRPC is not in this version"
_NO_EFFECT: Final = "it has no effect here"
IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "allow-grpc",
            "grpc-port",
            "grpc-address",
            "grpc-unix",
            "grpc-header-forward-pattern",
            "grpc-infer-allocation-pool-size",
            "grpc-infer-thread-count",
            "grpc-keepalive-time",
            "grpc-keepalive-timeout",
            "grpc-keepalive-permit-without-calls",
            "grpc-http2-max-pings-without-data",
            "grpc-http2-min-recv-ping-interval-without-data",
            "grpc-http2-max-ping-strikes",
            "grpc-max-connection-age",
            "grpc-max-connection-age-grace",
            "grpc-max-response-pool-size",
            "grpc-infer-response-compression-level",
        ),
        NO_GRPC,
    ),
    **dict.fromkeys(
        (
            "allow-cpu-metrics",
            "allow-gpu-metrics",
            "backend-config",
            "backend-directory",
            "buffer-manager-thread-count",
            "cache-config",
            "cache-directory",
            "cuda-memory-pool-byte-size",
            "disable-auto-complete-config",
            "http-header-forward-pattern",
            "http-thread-count",
            "log-error",
            "log-file",
            "log-info",
            "log-warning",
            "metrics-config",
            "metrics-interval-ms",
            "min-supported-compute-capability",
            "model-config-name",
            "model-load-retry-count",
            "pinned-memory-pool-byte-size",
            "rate-limit",
            "rate-limit-resource",
            "trace-config",
        ),
        _NO_EFFECT,
    ),
}
"""Flags of Triton's that are taken, so that a known command line starts, and warned about once each. What guards a
door there (`--grpc-use-ssl`, restricted APIs) is not among them: a guard that is not there is refused."""


def server_flags(command: F) -> F:
    """All flags of configuration on a click command, in the order of the table."""
    names = {option.field: option.flag for option in SERVER_OPTIONS}
    for field, flag in reversed(list(FLAGS.items())):
        command = _option(names[field], field, flag)(command)
    return click.option("--config", metavar="FILE", help="The server's own file, YAML.")(command)


def triton_flags(command: F) -> F:
    """Flags of Triton's: two that say in another way what an option says, and those without effect, hidden."""
    for name in IGNORED:
        command = click.option(f"--{name}", hidden=True, multiple=True)(command)
    for name in ("allow-http", "allow-metrics"):
        command = click.option(f"--{name}", type=bool, is_flag=False, flag_value=True, hidden=True)(command)
    return command


def given_flags(parsed: Mapping[str, object]) -> dict[str, object]:
    """What was given on the command line, by field of Settings, and `config`; a UsageError where flags disagree."""
    values = {field: parsed.get(field) for field in ("config", *FLAGS)}
    found = {field: value for field, value in values.items() if value is not None and value != ()}
    if parsed.get("allow_http") is False:
        raise click.UsageError("--allow-http=false: HTTP is the only door that this version has")
    if parsed.get("allow_metrics") is False:
        found["metrics_port"] = "-1"
    return found


def ignored_flag_warnings(parsed: Mapping[str, object]) -> list[str]:
    """One sentence for each flag that was given and does nothing."""
    return [f"--{name}: {why}" for name, why in IGNORED.items() if parsed.get(name.replace("-", "_"))]


def _option(name: str, field: str, flag: Flag) -> Callable[[F], F]:
    default = next(each.default for each in dataclasses.fields(Settings) if each.name == field)
    text = flag.help
    if flag.constant and isinstance(default, str | int | float) and default != "":
        text += f"  [default: {_default_text(default)}]"
    names = (f"--{name}", *flag.aliases, field)
    if flag.value == BOOL:  # true, false, 1, 0, or alone for true
        return click.option(*names, metavar=BOOL, help=text, is_flag=False, flag_value="true")
    return click.option(*names, metavar=flag.value, multiple=flag.many, help=text)


def _default_text(default: str | float) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return default if isinstance(default, str) else f"{default:.15g}"
