"""`mmsup ctl why`: the explanation of a worker's death, and its crash report."""

from __future__ import annotations

import json
import os

import click

from mmsup.supervisor.cli.command.failure import CommandFailed
from mmsup.supervisor.cli.ctl.control_client import Json, call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, show_result


@click.command(short_help="Why a model's worker died, sleeps or was refused, and what to do.")
@click.argument("model")
@click.option(
    "--death",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Which one: 1 is the last, 2 the one before.",
)
@click.option("--bundle", metavar="FILE", help="Write its crash report to FILE, as JSON; - is standard output.")
@ctl_command
def why(runtime_dir: str, as_json: bool, model: str, death: int, bundle: str | None) -> None:
    """Why a model's worker died: evidence, requests affected, what followed, what to do. Also why it is asleep, and
    what was decided last about memory for it.

    \b
    Example:  mmsup ctl why digits
              mmsup ctl why digits --death 2 --bundle digits.json
    """
    result = call_server(runtime_dir, "why", {"name": model, "death": death})
    if bundle is not None:
        _write_report(result.get("bundle"), bundle)
        if bundle == "-":
            return
    show_result("why", result, as_json)


def _write_report(report: Json | None, path: str) -> None:
    """The file is readable by its owner alone: the report may contain output of the model."""
    if report is None:
        raise CommandFailed("there is no bundle: no death is on record")
    text = json.dumps(report, indent=1) + "\n"
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None
