"""What the commands of `mmsup ctl` share: options, the call to the server, output of the result, failures."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, TypeVar, cast

import click

from mmsup.ipc import exit_codes
from mmsup.ipc.paths import default_runtime_dir
from mmsup.supervisor.cli.command.failure import CommandFailed
from mmsup.supervisor.cli.ctl.control_client import Json, NoServer, Progress, ServerRefused, call_server
from mmsup.supervisor.cli.output.progress import ProgressLine

F = TypeVar("F", bound=Callable[..., object])
follow_option = click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
runtime_option = click.option(
    "--runtime-dir",
    metavar="DIR",
    help="Directory of the server's control socket (or MMSUP_RUNTIME_DIR).",
)
RUNTIME_DIR_VARIABLE: Final = "MMSUP_RUNTIME_DIR"
"""Not read by click, which would read it for the command too, where it won over a flag before the command."""


def ctl_command(command: F) -> F:
    """Add --runtime-dir and --json, and turn errors of the control client into exit codes."""

    @functools.wraps(command)
    def run(**options: Any) -> None:  # what click parsed
        runtime_dir = _runtime_dir(options.pop("runtime_dir"), click.get_current_context().obj)
        try:
            command(runtime_dir=runtime_dir, **options)
        except ServerRefused as error:
            raise CommandFailed(error.text) from None
        except NoServer as error:
            raise CommandFailed(str(error), exit_codes.NO_SERVER) from None

    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
    return runtime_option(as_json(run))  # type: ignore[return-value]  # wraps() keeps what click reads of F


def _runtime_dir(after: str | None, before: str | None) -> str:
    """The flag after the command, else the one before it, else the environment, else the default."""
    flag = before if after is None else after
    if flag == "":
        raise click.UsageError("--runtime-dir is empty: name the directory, or leave the flag out")
    environ = dict(os.environ)
    return flag or environ.get(RUNTIME_DIR_VARIABLE) or default_runtime_dir(os.getuid(), environ)


def print_json(result: object) -> None:
    click.echo(json.dumps(result))


def show_result(view: str, result: Json, as_json: bool) -> None:
    """Print a result as JSON, or by the function `view` of output/views.py."""
    if as_json:
        print_json(result)
    else:
        getattr(load_views(), view)(result)


def load_views() -> ModuleType:
    from mmsup.supervisor.cli.output import views  # noqa: PLC0415 - neither `--help` nor `--json` needs it

    return views


def call_with_progress(
    runtime_dir: str, command: str, arguments: Mapping[str, object], as_json: bool
) -> Any:  # the result, by command
    """Call the server and show its progress messages, unless JSON was asked for."""
    line = ProgressLine()
    try:
        return call_server(runtime_dir, command, arguments, progress=None if as_json else line)
    finally:
        line.close()


def follow_stream(runtime_dir: str, command: str, arguments: Json, write: Progress) -> None:
    """Pass each line of a stream to `write`, until the user interrupts it."""
    try:
        call_server(runtime_dir, command, arguments | {"follow": True}, progress=write, timeout_s=None)
    except KeyboardInterrupt:
        click.echo(err=True)


def parse_object(text: str, option: str) -> Json:
    """The JSON object in the value of an option; UsageError if it is none."""
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise click.UsageError(f"{option} is not a JSON object")
    return cast("Json", parsed)


def read_config_argument(given: str) -> str:
    """The value of `--config` as JSON text: the text itself, or the contents of `@FILE`."""
    if given.startswith("@"):
        try:
            with open(given[1:], encoding="utf-8") as file:
                given = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{given[1:]}: {error}") from None
    parse_object(given, "--config")
    return given
