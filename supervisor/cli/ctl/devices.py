"""`mmsup ctl devices`: the GPUs of a server."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.ctl.control_client import call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, show_result


@click.group(short_help="The GPUs, and which are set aside.")
def devices() -> None:
    """The GPUs: which there are, and on which nothing new is started.

    \b
    Example:  mmsup ctl devices list
    """


@devices.command("list")
@ctl_command
def devices_list(runtime_dir: str, as_json: bool) -> None:
    """The GPUs: memory, workers, and why one is set aside.

    \b
    Example:  mmsup ctl devices list
    """
    show_result("devices", call_server(runtime_dir, "devices", {} if as_json else {"why": True}), as_json)


@devices.command("release")
@click.argument("device")
@ctl_command
def devices_release(runtime_dir: str, as_json: bool, device: str) -> None:
    """Use a GPU again that was set aside. DEVICE: cuda:N, its UUID, or cuda for all.

    Its recorded faults are cleared, and models that waited for it are loaded.

    \b
    Example:  mmsup ctl devices release cuda:1
    """
    show_result("released", call_server(runtime_dir, "devices_release", {"device": device}), as_json)
