"""The end of a command that could not be done: its reason on standard error, its exit code."""

from __future__ import annotations

from typing import Any

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.text import printable


class CommandFailed(click.ClickException):
    """Raised by a command; click prints it and exits. Every line of the text stands for itself."""

    def __init__(self, text: str, code: int = exit_codes.REFUSED) -> None:
        super().__init__(text)
        setattr(self, "exit_code", code)  # noqa: B010 - click reads it of the instance, and types it as the class's

    def show(self, file: Any = None) -> None:  # click's signature  # noqa: ARG002
        """Say why, with nothing in it that could steer a terminal."""
        for line in self.message.splitlines() or [""]:
            click.echo(f"mmsup: {printable(line)}", err=True)
