"""`mmsup ctl`: the group of commands to a running server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from mmsup.supervisor.cli.command.lazy_group import LazyGroup
from mmsup.supervisor.cli.ctl.subcommand import runtime_option

_CTL: Final = "mmsup.supervisor.cli.ctl"
COMMANDS: Final[Mapping[str, str]] = {
    "status": f"{_CTL}.status:status",
    "list": f"{_CTL}.models:list_",
    "ps": f"{_CTL}.status:ps",
    "load": f"{_CTL}.models:load",
    "unload": f"{_CTL}.models:unload",
    "upgrade": f"{_CTL}.upgrade:upgrade",
    "show": f"{_CTL}.models:show",
    "logs": f"{_CTL}.logs:logs",
    "events": f"{_CTL}.logs:events",
    "why": f"{_CTL}.why:why",
    "infer": f"{_CTL}.infer:infer",
    "quarantine": f"{_CTL}.quarantine:quarantine",
    "devices": f"{_CTL}.devices:devices",
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
