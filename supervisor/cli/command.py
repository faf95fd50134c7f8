"""What every verb of `mmsup ctl` has: its options, how its answer is shown, and the end that every failure comes to."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import click

from mmsup.ipc import exit_codes
from mmsup.ipc.paths import default_runtime_dir
from mmsup.supervisor.cli.command_failed import CommandFailed
from mmsup.supervisor.cli.control_client import Json, NoServer, ServerRefused

F = TypeVar("F", bound=Callable[..., object])


def runtime_option(command: F) -> F:
    """Where the server is."""
    return click.option(
        "--runtime-dir",
        metavar="DIR",
        envvar="MMSUP_RUNTIME_DIR",
        help="Where the server's control socket lies (or MMSUP_RUNTIME_DIR).",
    )(command)


def ctl_command(command: F) -> F:
    """The options that every verb has, and one end for all failures."""

    @functools.wraps(command)
    def run(**options: Any) -> None:  # what click parsed
        # An option after the verb is nearer than one before it.
        given = options.pop("runtime_dir") or click.get_current_context().obj
        try:
            command(runtime_dir=given or default_runtime_dir(os.getuid(), dict(os.environ)), **options)
        except ServerRefused as error:
            raise CommandFailed(error.text) from None
        except NoServer as error:
            raise CommandFailed(str(error), exit_codes.NO_SERVER) from None

    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
    return runtime_option(as_json(run))  # type: ignore[return-value]  # wraps() keeps what click reads of F


def print_json(result: object) -> None:
    """One line of JSON on standard output."""
    click.echo(json.dumps(result))


def show_result(view: str, result: Json, as_json: bool) -> None:
    """An answer as JSON, or drawn by one of the views."""
    if as_json:
        print_json(result)
        return
    getattr(load_views(), view)(result)


def load_views() -> ModuleType:
    """How answers are drawn, imported when one is."""
    from mmsup.supervisor.cli import views  # noqa: PLC0415 - neither `--help` nor `--json` pays for it

    return views
