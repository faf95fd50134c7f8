"""The command `mmsup`: which commands there are.

Each command's own file is imported when it is asked for, never before: `ctl --help` stays under 150 ms, and no command
pays for another's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

import click

import mmsup

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "mmsup.supervisor.cli.serve",
    "check": "mmsup.supervisor.cli.check",
    "ctl": "mmsup.supervisor.cli.ctl",
    "chaos": "mmsup.supervisor.chaos.command",
}
"""Name to the file that has a click command of that name."""


class _LazyCommands(click.Group):
    """A group whose commands are imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All names, without an import."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        assert isinstance(found, click.Command), f"{cmd_name} is no command"
        return found


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mmsup.__version__, prog_name="mmsup", message="%(prog)s %(version)s")
def main() -> None:
    """Serve many models on one machine, each in a process of its own.

    \b
    Example:  mmsup serve --model-repository models
              mmsup ctl status
    """
