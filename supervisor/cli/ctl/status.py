"""`mmsup ctl status`, `mmsup ctl ps`: the server and its processes."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.ctl.control_client import call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, show_result


@click.command()
@ctl_command
def status(runtime_dir: str, as_json: bool) -> None:
    """The server, its processes and addresses, its models.

    \b
    Example:  mmsup ctl status --json
    """
    show_result("status", call_server(runtime_dir, "status"), as_json)


@click.command()
@ctl_command
def ps(runtime_dir: str, as_json: bool) -> None:
    """The processes: memory and its cap, restarts, requests, age.

    \b
    Example:  mmsup ctl ps
    """
    show_result("processes", call_server(runtime_dir, "ps"), as_json)
