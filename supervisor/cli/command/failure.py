"""How a command fails: its reason on standard error, and its exit code."""

from __future__ import annotations

from typing import Any

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.output.text import printable


class CommandFailed(click.ClickException):
    """Raised by a command; click prints it and exits. Each line of the text is printed with its own
    prefix, but for those that are indented to be pasted."""

    def __init__(self, text: str, code: int = exit_codes.REFUSED) -> None:
        super().__init__(text)
        setattr(self, "exit_code", code)  # noqa: B010 - click reads it from the instance, and types it as the class's

    def show(self, file: Any = None) -> None:  # click's signature  # noqa: ARG002
        """Print the reason, with control characters escaped."""
        for line in self.message.splitlines() or [""]:
            click.echo(printable(line) if line.startswith("    ") else f"mmsup: {printable(line)}", err=True)
