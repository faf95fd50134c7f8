"""`mmsup ctl status`, `ps`, `upgrade`: the server and its processes."""

from __future__ import annotations

import secrets

import click

from mmsup.supervisor.cli.ctl.control_client import call_server
from mmsup.supervisor.cli.ctl.subcommand import call_with_progress, ctl_command, show_result


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


@click.command(short_help="Switch to the code on disk; no request fails.")
@click.option("--force", is_flag=True, help="Re-execute the keeper even if its code is the same.")
@ctl_command
def upgrade(runtime_dir: str, as_json: bool, force: bool) -> None:
    """Switch to the code on disk; no request fails, no connection is cut.

    The keeper stays the same process. Controller, gateways and workers are replaced one after the other, each new
    process ready before the old one exits. What cannot be replaced stays as it was, and is named.

    \b
    Example:  mmsup ctl upgrade
    """
    arguments = {"ticket": secrets.token_hex(8), "force": force}
    show_result("upgraded", call_with_progress(runtime_dir, "upgrade", arguments, as_json), as_json)
