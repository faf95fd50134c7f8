"""`mmsup ctl list`, `show`, `load`, `unload`, `sleep`, `wake`: the models of a server."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.ctl.control_client import Json, call_server
from mmsup.supervisor.cli.ctl.subcommand import call_with_progress, ctl_command, read_config_argument, show_result


@click.command("list")
@ctl_command
def list_(runtime_dir: str, as_json: bool) -> None:
    """The models: desired state, state, versions, reason.

    \b
    Example:  mmsup ctl list
    """
    show_result("models", call_server(runtime_dir, "list"), as_json)


@click.command(short_help="One model: configuration, tensors, workers, events.")
@click.argument("model")
@ctl_command
def show(runtime_dir: str, as_json: bool, model: str) -> None:
    """One model: configuration, tensors, workers, faults, recent events.

    \b
    Example:  mmsup ctl show digits
    """
    show_result("model", call_server(runtime_dir, "show", {"name": model}), as_json)


@click.command()
@click.argument("model")
@click.option("--config", metavar="JSON", help="A model configuration to load with, as JSON or @FILE.")
@ctl_command
def load(runtime_dir: str, as_json: bool, model: str, config: str | None) -> None:
    """Load or reload a model; returns when it serves.

    \b
    Example:  mmsup ctl load digits
    """
    arguments: Json = {"name": model} | ({"config": read_config_argument(config)} if config is not None else {})
    show_result("changed", call_with_progress(runtime_dir, "load", arguments, as_json), as_json)


@click.command()
@click.argument("model")
@ctl_command
def unload(runtime_dir: str, as_json: bool, model: str) -> None:
    """Unload a model after its requests in flight have finished.

    \b
    Example:  mmsup ctl unload digits
    """
    show_result("unloaded", call_with_progress(runtime_dir, "unload", {"name": model}, as_json), as_json)


@click.command(short_help="Give a model's memory back; its next request loads it.")
@click.argument("model")
@ctl_command
def sleep(runtime_dir: str, as_json: bool, model: str) -> None:
    """Put a model to sleep after its requests in flight have finished: its memory is given back, it stays ready to be
    asked, and its next request loads it.

    \b
    Example:  mmsup ctl sleep digits
    """
    show_result("asleep", call_with_progress(runtime_dir, "sleep", {"name": model}, as_json), as_json)


@click.command(short_help="Load a model that is asleep.")
@click.argument("model")
@ctl_command
def wake(runtime_dir: str, as_json: bool, model: str) -> None:
    """Load a model that is asleep, as its next request would; returns when it serves.

    \b
    Example:  mmsup ctl wake digits
    """
    show_result("changed", call_with_progress(runtime_dir, "wake", {"name": model}, as_json), as_json)
