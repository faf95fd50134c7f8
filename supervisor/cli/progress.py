"""Progress of a verb that takes its time, on standard error."""

from __future__ import annotations

import sys

import click

from mmsup.supervisor.cli.control_client import Json
from mmsup.supervisor.cli.text import cell


class ProgressLine:
    """One line that changes on a terminal, a line each elsewhere."""

    def __init__(self) -> None:
        self._is_drawn = False

    def __call__(self, line: Json) -> None:
        """Draw what a progress line says."""
        text = cell(line.get("progress"))
        if not text:
            return
        if sys.stderr.isatty():
            self._is_drawn = True
            click.echo(f"\r\x1b[K{text} ", err=True, nl=False)
        else:
            click.echo(text, err=True)

    def close(self) -> None:
        """Wipe what was drawn, so that the result stands alone."""
        if self._is_drawn:
            click.echo("\r\x1b[K", err=True, nl=False)
