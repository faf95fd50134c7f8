"""The settings of a server: one frozen object, made by server_options.py, passed between processes as JSON.

The keeper reads only paths and addresses of it; the controller reads the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.log_settings import LogSettings
from mmsup.ipc.rpc.keepalive import RpcKeepalive
from mmsup.ipc.transport.dataclass_codec import record_decoder, to_plain

CONTROL_MODES: Final = ("none", "explicit", "poll", "on-demand")
FRONTS: Final = ("fast", "plain")
ZYGOTES: Final = ("none", "auto", "eager")
GRPC_FRONTS: Final = ("own", "grpcio")
LINKS: Final = ("pair", "zeromq")


@dataclass(frozen=True, slots=True)
class Settings:
    """The values in force of all options of `mmsup serve`. Sizes in bytes."""

    repositories: tuple[str, ...]
    runtime_dir: str
    state_dir: str
    server_name: str = "mmsup"
    host: str = "127.0.0.1"
    http_port: int = 8000
    """0: any free one. `ctl status` shows the address."""
    http_unix: str = ""
    """A UNIX socket on which HTTP is served too; empty: none."""
    allow_hosts: tuple[str, ...] = ()
    """Host names that the listeners answer to beside their own; `*` is any."""
    client_memory: str = "local"
    """Whose clients may share memory: `local` (of loopback and UNIX listeners), `all` or `none`."""
    client_memory_uids: tuple[int, ...] = ()
    """Users whose files clients of a TCP listener may register, beside the server's own."""
    grpc_host: str = "127.0.0.1"
    grpc_port: int = 8001
    """0: any free one; -1: none."""
    grpc_is_wanted: bool = False
    """Whether the port was asked for. If not, and another program has it, there is a warning and no gRPC."""
    grpc_unix: str = ""
    """A UNIX socket on which gRPC is served too; empty: none."""
    grpc_front: str = "own"
    """`own`: gateways serve gRPC themselves; `grpcio`: a process with that library does."""
    grpc_keepalive_time_ms: int = 7_200_000
    grpc_keepalive_timeout_ms: int = 20_000
    grpc_keepalive_without_calls: bool = False
    grpc_max_pings_without_data: int = 2
    grpc_min_ping_interval_ms: int = -1
    grpc_max_ping_strikes: int = 2
    grpc_max_connection_age_ms: int = 0
    grpc_max_connection_age_grace_ms: int = 0
    """As RpcKeepalive has them (ipc/rpc/keepalive.py)."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 8002
    """-1: no metrics listener; `/metrics` is then on the HTTP port alone."""
    gateways: int = 1
    spare_gateway: bool = True
    """Keep one more started, as a standby for one that exits."""
    control_mode: str = "none"
    """`none`: every model at start; `explicit`: `load_models` and the API; `poll`: as the repository changes;
    `on-demand`: each model at its first request."""
    load_models: tuple[str, ...] = ()
    """Models to load at the start in `explicit` mode; `*` is all."""
    poll_s: float = 15.0
    strict_readiness: bool = False
    startup_grace_s: float = 60.0
    """How long models that load for the first time may keep the server from being ready while another one serves."""
    exit_on_error: bool = False
    max_body_bytes: int = 64 << 20
    arena_bytes: int = 2 << 30
    """Quota of arena memory of one gateway."""
    cache_bytes: int = 64 << 20
    """Of the response caches of all gateways together; 0: none."""
    max_requests: int = 4096
    """Open requests in one gateway, of all models; one model may use all that are free."""
    max_request_bytes: int = 1 << 30
    """Bytes of their bodies; half of `arena_bytes`, so that there is room for results."""
    memory_budget_bytes: int = 0
    """Of the host, for all workers together; 0: what the machine or container has beside the server's own processes."""
    gpu_memory_budgets: tuple[str, ...] = ()
    """Of GPUs, `DEVICE:BYTES` each; an empty device is each that is not named."""
    restart_grace_s: float = 30.0
    cold_start_timeout_s: float = 0.0
    """How long a request may wait for a model to be loaded from sleep; 0: as long as its load may take. A model's own
    `cold_start_timeout` goes before it."""
    max_cold_requests: int = 1024
    """Requests of one gateway that may wait so at one time, and the bytes of their bodies that it holds meanwhile."""
    max_cold_bytes: int = 128 << 20
    front: str = "fast"
    """`fast`: inferences are served by our own HTTP code and the rest by aiohttp; `plain`: aiohttp serves all."""
    link: str = "pair"
    """Transport of requests to a worker: `pair`, a socket pair with each gateway; `zeromq`, one bound socket."""
    zygotes: str = "auto"
    """Processes that workers are forked of. `none`: there are none; `auto`: from the second worker on that wants the
    same one; `eager`: from the first, and one with numpy at the start."""
    max_parallel_loads: int = 2
    exit_timeout_s: float = 30.0
    kill_limit_s: float = 10.0
    """How long a worker may take to exit after SIGKILL before it is replaced nevertheless."""
    allow_model_uploads: bool = False
    """Load requests may bring files of a model, which are kept in the state directory."""
    allow_code_uploads: bool = False
    """They may bring code too."""
    max_upload_bytes: int = 1 << 30
    """All such files together."""
    log_format: str = "auto"
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose: int = 0
    gpu_driver: str = "/dev/nvidiactl"
    """A file that exists if there is a GPU driver for NVML."""
    fault_points: str = ""
    """The control page of failpoints (ipc/failpoints.py); for tests, and empty otherwise."""
    follow_links: tuple[str, ...] = ()
    """Folders outside of the repositories into which links in them may lead."""
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])  # validated model options
    """`defaults:` of the server's file."""
    models: dict[str, Any] = field(default_factory=dict[str, Any])  # name -> validated model options
    """`models:` of the server's file."""

    @property
    def logging(self) -> LogSettings:
        """At the start; clients of the same machine may change it afterwards."""
        return LogSettings(self.log_info, self.log_warning, self.log_error, self.log_verbose, self.log_format)

    @property
    def gateway_seats(self) -> int:
        """Largest number of gateways at one time: the configured ones, as many that drain in an upgrade, a standby."""
        return 2 * self.gateways + 1

    @property
    def grpc_keepalive(self) -> RpcKeepalive:
        return RpcKeepalive(
            self.grpc_keepalive_time_ms,
            self.grpc_keepalive_timeout_ms,
            self.grpc_keepalive_without_calls,
            self.grpc_max_pings_without_data,
            self.grpc_min_ping_interval_ms,
            self.grpc_max_ping_strikes,
            self.grpc_max_connection_age_ms,
            self.grpc_max_connection_age_grace_ms,
        )

    def to_json(self) -> str:
        return json.dumps(to_plain(self)[1:])

    @staticmethod
    def from_json(text: str) -> Settings:
        """WireError if the text was not made by `to_json`."""
        settings = record_decoder(Settings)(json.loads(text))
        assert isinstance(settings, Settings)
        return settings
