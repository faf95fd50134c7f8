"""`mmsup ctl quarantine`: requests that killed workers (poison requests)."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.ctl.control_client import call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, show_result


@click.group()
def quarantine() -> None:
    """Requests that ended workers: what is refused, and until when.

    \b
    Example:  mmsup ctl quarantine list
    """


@quarantine.command("list", short_help="Requests that are refused, or run alone.")
@click.argument("model", required=False)
@ctl_command
def quarantine_list(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Requests that are refused (blocked), or run alone until it is known whether they kill a worker (suspect).

    \b
    Example:  mmsup ctl quarantine list digits
    """
    show_result("quarantine", call_server(runtime_dir, "quarantine", {"model": model} if model else {}), as_json)


@quarantine.command("clear", short_help="Clear the list of a model, or of all.")
@click.argument("model", required=False)
@ctl_command
def quarantine_clear(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Clear the list of a model, or of all: no request is refused until it kills a worker again.

    \b
    Example:  mmsup ctl quarantine clear digits
    """
    show_result("cleared", call_server(runtime_dir, "quarantine_clear", {"model": model} if model else {}), as_json)
