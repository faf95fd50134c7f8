"""`mmsup ctl`: the group of commands to a running server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from mmsup.supervisor.cli.command.lazy_group import LazyGroup
from mmsup.supervisor.cli.ctl.subcommand import runtime_option

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "status": ("mmsup.supervisor.cli.ctl.server", "status"),
    "list": ("mmsup.supervisor.cli.ctl.models", "list_"),
    "ps": ("mmsup.supervisor.cli.ctl.server", "ps"),
    "load": ("mmsup.supervisor.cli.ctl.models", "load"),
    "unload": ("mmsup.supervisor.cli.ctl.models", "unload"),
    "sleep": ("mmsup.supervisor.cli.ctl.models", "sleep"),
    "wake": ("mmsup.supervisor.cli.ctl.models", "wake"),
    "upgrade": ("mmsup.supervisor.cli.ctl.server", "upgrade"),
    "show": ("mmsup.supervisor.cli.ctl.models", "show"),
    "logs": ("mmsup.supervisor.cli.ctl.logs", "logs"),
    "events": ("mmsup.supervisor.cli.ctl.logs", "events"),
    "why": ("mmsup.supervisor.cli.ctl.why", "why"),
    "infer": ("mmsup.supervisor.cli.ctl.infer", "infer"),
    "quarantine": ("mmsup.supervisor.cli.ctl.quarantine", "quarantine"),
    "devices": ("mmsup.supervisor.cli.ctl.devices", "devices"),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@runtime_option
@click.pass_context
def ctl(context: click.Context, runtime_dir: str | None) -> None:
    """Query or control a running server.

    \b
    Example:  mmsup ctl list
              mmsup ctl load digits && mmsup ctl show digits
    \b
    Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage, 4 no server there.
    """
    context.obj = runtime_dir
