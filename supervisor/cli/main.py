"""The command `mmsup`.

A command's modules are imported when it is used, so that `mmsup ctl` starts in a fraction of a second and no command
loads another one's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

import mmsup
from mmsup.supervisor.cli.command.lazy_group import LazyGroup

COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("mmsup.supervisor.cli.serve.command", "serve"),
    "check": ("mmsup.supervisor.cli.check.command", "check"),
    "plan": ("mmsup.supervisor.cli.plan.command", "plan_command"),
    "ctl": ("mmsup.supervisor.cli.ctl.group", "ctl"),
    "chaos": ("mmsup.supervisor.chaos.command", "chaos"),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mmsup.__version__, prog_name="mmsup", message="%(prog)s %(version)s")
def main() -> None:
    """Serve many models on one machine, each in a process of its own.

    \b
    Example:  mmsup serve --model-repository models
              mmsup ctl status
    """
