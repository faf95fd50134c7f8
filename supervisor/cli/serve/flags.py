"""The flags of `mmsup serve` and `mmsup check`, with the help text of each.

Names and valid values of the options are defined in config/server_options.py. Values are passed on as text, so that
read_config can report all errors together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import click

from mmsup.supervisor.config.server_options import SERVER_OPTIONS
from mmsup.supervisor.config.settings import CONTROL_MODES, Settings
from mmsup.supervisor.config.units import size_text

F = TypeVar("F", bound=Callable[..., object])


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """How one option appears in the help."""

    value: str
    """Stands for its value: `PORT`."""
    help: str
    many: bool = False
    """It may be given more than once."""
    aliases: tuple[str, ...] = ()
    default: str = ""
    """Its default in words, where that is not a constant."""


BOOL: Final = "BOOL"
_DIR: Final = "DIR"

FLAGS: Final[Mapping[str, Flag]] = {
    "repositories": Flag(_DIR, "A directory of models; may be given again.", many=True, aliases=("--model-store",)),
    "follow_links": Flag(
        _DIR, "A directory outside of the repositories to which links in them may lead; may be given again.", many=True
    ),
    "control_mode": Flag("|".join(CONTROL_MODES), "Which models start, and who may load."),
    "load_models": Flag("NAME", "A model to load in explicit mode; * is all; may be given again.", many=True),
    "poll_s": Flag("S", "How often poll mode reads the repositories."),
    "zygotes": Flag("none|auto|eager", "Fork workers of processes that have imported their engine."),
    "max_parallel_loads": Flag("N", "Models that load at one time."),
    "host": Flag("ADDRESS", "What the listeners bind.", aliases=("--http-address",)),
    "http_port": Flag("PORT", "Port of the HTTP listener; 0 is any free one."),
    "http_unix": Flag("PATH", "A UNIX socket to serve HTTP on as well."),
    "allow_hosts": Flag(
        "NAME",
        "A host name to answer to beside localhost, as a proxy sends it; * is any; may be given again.",
        many=True,
    ),
    "max_body_bytes": Flag("BYTES", "Largest request body."),
    "client_memory": Flag(
        BOOL, "Let clients share memory with the server.", default="those of loopback and UNIX listeners"
    ),
    "client_memory_uids": Flag(
        "UID", "A user whose memory clients of a TCP listener may share; may be given again.", many=True
    ),
    "grpc_host": Flag("ADDRESS", "What the gRPC listener binds.", default="the address of --host"),
    "grpc_port": Flag("PORT", "Port of the gRPC listener; 0 is any free one, -1 none."),
    "grpc_unix": Flag("PATH", "A UNIX socket to serve gRPC on as well."),
    "grpc_front": Flag("own|grpcio", "What serves gRPC: the gateways, or a process with the grpcio library."),
    "grpc_keepalive_time_ms": Flag("MS", "Ping a gRPC client that is silent for so long; 0 is never."),
    "grpc_keepalive_timeout_ms": Flag("MS", "How long its answer may take before the connection is closed."),
    "grpc_keepalive_without_calls": Flag(BOOL, "Ping also while no call is open, and allow clients to."),
    "grpc_max_pings_without_data": Flag("N", "Pings with no data in between; 0 is any number."),
    "grpc_min_ping_interval_ms": Flag(
        "MS", "Between two pings of a client with no data in between.", default="as many as are no flood"
    ),
    "grpc_max_ping_strikes": Flag("N", "Pings too soon that are forgiven; 0 is all."),
    "grpc_max_connection_age_ms": Flag("MS", "Let gRPC connections end after so long; 0 is never."),
    "grpc_max_connection_age_grace_ms": Flag("MS", "What open calls have then; 0 is as long as they take."),
    "metrics_host": Flag("ADDRESS", "What the metrics listener binds.", default="the address of --host"),
    "metrics_port": Flag("PORT", "Port of the metrics listener; -1 leaves /metrics to the HTTP port."),
    "gateways": Flag("N", "Gateway processes."),
    "spare_gateway": Flag(BOOL, "Keep one more started, as a standby for one that exits."),
    "arena_bytes": Flag("SIZE", "Shared memory for tensors, each gateway."),
    "cache_bytes": Flag("local,size=SIZE", "Response cache of models that have one, all gateways together."),
    "max_requests": Flag("N", "Open requests of each gateway, shared by all models."),
    "max_request_bytes": Flag("SIZE", "Bytes of their bodies, shared likewise."),
    "memory_budget_bytes": Flag(
        "SIZE",
        "Host memory of all workers together.",
        default="auto: what the machine or container has beside the server itself",
    ),
    "gpu_memory_budgets": Flag(
        "[DEVICE:]SIZE", "Memory of a GPU, or of each, for all workers on it; may be given again.", many=True
    ),
    "restart_grace_s": Flag("S", "How long a request waits for a model that restarts."),
    "cold_start_timeout_s": Flag(
        "S", "How long a request waits for a model that is loaded on demand.", default="the model's load_timeout"
    ),
    "max_cold_requests": Flag("N", "Requests of each gateway that may wait so."),
    "max_cold_bytes": Flag("SIZE", "Bytes of their bodies that it holds meanwhile."),
    "front": Flag("fast|plain", "What serves inferences: the fast front, or aiohttp as for all other requests."),
    "link": Flag("pair|zeromq", "What carries requests between gateways and workers."),
    "strict_readiness": Flag(BOOL, "Ready only while every requested model serves; otherwise one is enough."),
    "startup_grace_s": Flag("S", "How long first loads may hold readiness back while another model serves already."),
    "exit_on_error": Flag(BOOL, "End if a model fails at the start."),
    "allow_model_uploads": Flag(BOOL, "Take files of models with load requests, from clients of this machine."),
    "allow_code_uploads": Flag(BOOL, "Take such with code in them too: whoever can load a model can run anything."),
    "max_upload_bytes": Flag("SIZE", "All such files together; they are kept in the state directory."),
    "exit_timeout_s": Flag("S", "How long a stop waits for requests in flight."),
    "kill_limit_s": Flag("S", "How long a killed worker may take to exit before it is quarantined."),
    "server_name": Flag("NAME", "The server's name in its metadata."),
    "runtime_dir": Flag(_DIR, "Directory of the sockets and the lock, by which ctl finds the server."),
    "state_dir": Flag(_DIR, "Directory of what survives a restart."),
    "log_format": Flag("FORMAT", "auto, default (text) or json (lines)."),
    "log_info": Flag(BOOL, "Log what an operator wants to know once."),
    "log_warning": Flag(BOOL, "Log what went wrong and was mended."),
    "log_error": Flag(BOOL, "Log what went wrong and was not."),
    "log_verbose": Flag("N", "From 1 on, log each command, and each request that fails."),
}
"""By field of Settings, in the order of the help."""


def server_flags(command: F) -> F:
    """Add all configuration flags to a click command, in the order of FLAGS."""
    names = {option.field: option.flag for option in SERVER_OPTIONS}
    for field, flag in reversed(list(FLAGS.items())):
        command = _option(names[field], field, flag)(command)
    return click.option("--config", metavar="FILE", help="The server's own file, YAML.")(command)


def given_flags(parsed: Mapping[str, object]) -> dict[str, object]:
    """The flags that were given, by field of Settings, and `config`; UsageError where they contradict each other."""
    values = {field: parsed.get(field) for field in ("config", *FLAGS)}
    found = {field: value for field, value in values.items() if value is not None and value != ()}
    if parsed.get("allow_http") is False:
        raise click.UsageError("--allow-http=false: health and metrics are served over HTTP; bind it to loopback")
    if parsed.get("allow_grpc") is False:
        found["grpc_port"] = "-1"
    if parsed.get("allow_metrics") is False:
        found["metrics_port"] = "-1"
    return found


def _option(name: str, field: str, flag: Flag) -> Callable[[F], F]:
    default = flag.default or next(each.default for each in dataclasses.fields(Settings) if each.name == field)
    text = flag.help
    if isinstance(default, str | int | float) and default != "":
        text += f"  [default: {_default_text(field, default)}]"
    names = (f"--{name}", *flag.aliases, field)
    if flag.value == BOOL:  # true, false, 1, 0, or alone for true
        return click.option(*names, metavar=BOOL, help=text, is_flag=False, flag_value="true")
    return click.option(*names, metavar=flag.value, multiple=flag.many, help=text)


def _default_text(field: str, default: str | float) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int) and field.endswith("_bytes"):
        return size_text(default)
    return default if isinstance(default, str) else f"{default:.15g}"
