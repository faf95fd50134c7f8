"""`mmsup ctl logs`, `mmsup ctl events`: what models print, and what happened in the server."""

from __future__ import annotations

import click

from mmsup.supervisor.cli.ctl.control_client import Json, call_server
from mmsup.supervisor.cli.ctl.subcommand import ctl_command, follow_option, follow_stream, load_views, print_json
from mmsup.supervisor.cli.output.text import printable


@click.command()
@click.argument("model")
@click.option(
    "--lines", "-n", default=100, show_default=True, type=click.IntRange(min=0), help="How many, from the end."
)
@follow_option
@click.option("--raw", is_flag=True, help="Control characters as they are, not escaped.")
@ctl_command
def logs(runtime_dir: str, as_json: bool, model: str, lines: int, follow: bool, raw: bool) -> None:
    """Standard output and error of a model's workers.

    MODEL is a model's name, or _gateways for what the gateways print. The keeper and the controller print to the output
    of `mmsup serve`.

    \b
    Example:  mmsup ctl logs digits --lines 20
              mmsup ctl logs _gateways
    """
    arguments: Json = {"name": model, "lines": lines}

    def write(line: object) -> None:
        click.echo(str(line) if raw else printable(str(line)), color=raw or None)

    if follow:
        follow_stream(runtime_dir, "logs", arguments, lambda each: print_json(each) if as_json else write(each["line"]))
        return
    result = call_server(runtime_dir, "logs", arguments)
    if as_json:
        print_json(result)
        return
    for line in result["lines"]:
        write(line)
    if not result["lines"] and lines:
        click.echo(f"{printable(model)} has printed nothing", err=True)


@click.command()
@click.argument("model", required=False)
@click.option("--count", "-n", type=click.IntRange(min=1), help="How many, from the end.")
@follow_option
@ctl_command
def events(runtime_dir: str, as_json: bool, model: str | None, count: int | None, follow: bool) -> None:
    """Events: starts, deaths with their cause, restarts.

    \b
    Example:  mmsup ctl events digits --count 10
              mmsup ctl events --follow --json
    """
    arguments: Json = {name: value for name, value in (("model", model), ("count", count)) if value is not None}

    def write(line: Json) -> None:
        print_json(line["event"]) if as_json else click.echo(load_views().event(line["event"]))

    if follow:
        follow_stream(runtime_dir, "events", arguments, write)
        return
    result = call_server(runtime_dir, "events", arguments)
    if as_json:
        print_json(result)
        return
    for each in result["events"]:
        click.echo(load_views().event(each))
