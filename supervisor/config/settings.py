"""What the server was told at its start: one frozen object, made by config.py, handed on as JSON.

The keeper reads of it only the names of files and addresses; the brain reads the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from mmsup.ipc.transport.dataclass_codec import record_decoder, to_plain

CONTROL_MODES: Final = ("none", "explicit", "poll")
FRONTS: Final = ("fast", "plain")
LINKS: Final = ("pair", "zeromq")


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of `mmsup serve` after flag, environment, file and default were weighed. Sizes in bytes."""

    repositories: tuple[str, ...]
    runtime_dir: str
    state_dir: str
    server_name: str = "mmsup"
    host: str = "127.0.0.1"
    http_port: int = 8000
    """0: a free one. The address in force stands in `ctl status`."""
    http_unix: str = ""
    """A UNIX socket to serve HTTP on as well; empty: none."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 8002
    """-1: no metrics listener of its own; `/metrics` is then on the HTTP port alone."""
    gateways: int = 1
    spare_gateway: bool = True
    """Keep one more started, for the place of one that ends."""
    control_mode: str = "none"
    """`none`: every model at start; `explicit`: `load_models` and the API; `poll`: as the repository changes."""
    load_models: tuple[str, ...] = ()
    """Names to load at start in `explicit` mode; `*` is all."""
    poll_s: float = 15.0
    strict_readiness: bool = False
    exit_on_error: bool = False
    max_body_bytes: int = 64 << 20
    arena_bytes: int = 2 << 30
    """Quota of arena memory of one gateway."""
    max_requests: int = 4096
    """Open at a time in one gateway, over all models; a model may have as many as are free."""
    max_request_bytes: int = 1 << 30
    """The same of their bodies; half of what `arena_bytes` gives, so that results find room."""
    restart_grace_s: float = 30.0
    front: str = "fast"
    """`fast`: gateways serve inferences by themselves and the rest by aiohttp; `plain`: aiohttp serves all."""
    link: str = "pair"
    """What carries requests to workers: `pair`, a socket pair for each gateway; `zeromq`, one bound socket."""
    max_parallel_loads: int = 2
    exit_timeout_s: float = 30.0
    kill_limit_s: float = 10.0
    """How long a worker that was sent SIGKILL may take to die before another may take its place."""
    log_format: str = "auto"
    """`auto` (text on a terminal, else JSON lines), `default` (text) or `json`."""
    log_verbose: int = 0
    gpu_driver: str = "/dev/nvidiactl"
    """The file that is there where a driver is that NVML can ask."""
    fault_points: str = ""
    """The file of a range of fault points (ipc/failpoints.py); for tests, and empty otherwise."""
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])  # keys of mmsup.yaml, checked by config.py
    """`defaults:` of the server's file."""
    models: dict[str, Any] = field(default_factory=dict[str, Any])  # name -> keys of mmsup.yaml, checked by config.py
    """`models:` of the server's file."""

    @property
    def gateway_seats(self) -> int:
        """How many gateways may live at one time: one in each place, as many that leave after an upgrade, a spare."""
        return 2 * self.gateways + 1

    def to_json(self) -> str:
        """As text for another process."""
        return json.dumps(to_plain(self)[1:])

    @staticmethod
    def from_json(text: str) -> Settings:
        """The object again; WireError if the text is not ours."""
        made = record_decoder(Settings)(json.loads(text))
        assert isinstance(made, Settings)
        return made
