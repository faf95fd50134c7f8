"""`mmsup ctl quarantine`, `mmsup ctl devices`: what the server holds against requests and GPUs, and how it lets go."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.command import ctl_command, show_result
from mmsup.supervisor.cli.control_client import call_server


@click.group()
def quarantine() -> None:
    """Requests that ended workers: what is refused, and until when.

    \b
    Example:  mmsup ctl quarantine list
    """


@quarantine.command("list")
@click.argument("model", required=False)
@ctl_command
def quarantine_list(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Requests that are refused (blocked), or run alone until it is known whether they do harm (suspect).

    \b
    Example:  mmsup ctl quarantine list digits
    """
    show_result("quarantine", call_server(runtime_dir, "quarantine", {"model": model} if model else {}), as_json)


@quarantine.command("clear")
@click.argument("model", required=False)
@ctl_command
def quarantine_clear(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Forget what is known of a model's requests, or of all: nothing is refused until it ends a worker again.

    \b
    Example:  mmsup ctl quarantine clear digits
    """
    show_result("cleared", call_server(runtime_dir, "quarantine_clear", {"model": model} if model else {}), as_json)


@click.group()
def devices() -> None:
    """The GPUs: who is there, and where nothing new may go.

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
    show_result("devices", call_server(runtime_dir, "devices"), as_json)


@devices.command("release")
@click.argument("device")
@ctl_command
def devices_release(runtime_dir: str, as_json: bool, device: str) -> None:
    """Let models go to a GPU again that was set aside. DEVICE: cuda:N, its UUID, or cuda for all.

    Its faults are forgotten, and what waited for it is loaded.

    \b
    Example:  mmsup ctl devices release cuda:1
    """
    show_result("released", call_server(runtime_dir, "devices_release", {"device": device}), as_json)
