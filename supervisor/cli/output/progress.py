"""Progress messages of a long command, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import click

from mmsup.supervisor.cli.output.text import cell


class ProgressLine:
    """On a terminal one line that is overwritten, elsewhere a line for each message."""

    def __init__(self) -> None:
        self._is_drawn = False

    def __call__(self, line: Mapping[str, Any]) -> None:  # JSON
        text = cell(line.get("progress"))
        if not text:
            return
        if sys.stderr.isatty():
            self._is_drawn = True
            click.echo(f"\r\x1b[K{text} ", err=True, nl=False)
        else:
            click.echo(text, err=True)

    def close(self) -> None:
        if self._is_drawn:
            click.echo("\r\x1b[K", err=True, nl=False)
