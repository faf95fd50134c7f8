"""`mmsup ctl`: questions and orders to a running server, over its control socket.

Covers: verbs, their options, what of the answer goes to standard output and what to standard error.
Does not cover: the wire (client.py), what answers look like (views.py). Imports nothing heavy: every call pays.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import BinaryIO

import click

from mmsup.supervisor.cli.command import ctl_command, load_views, print_json, runtime_option, show_result
from mmsup.supervisor.cli.command_failed import CommandFailed
from mmsup.supervisor.cli.control_client import Json, Progress, ServerRefused, call_server
from mmsup.supervisor.cli.ctl_admin import devices, quarantine
from mmsup.supervisor.cli.ctl_infer_given import parse_object, read_config_argument
from mmsup.supervisor.cli.progress import ProgressLine
from mmsup.supervisor.cli.text import cell, printable

_follow = click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@runtime_option
@click.pass_context
def ctl(context: click.Context, runtime_dir: str | None) -> None:
    """Ask a running server, or tell it what to do.

    \b
    Example:  mmsup ctl list
              mmsup ctl load digits && mmsup ctl show digits
    \b
    Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage, 4 no server there.
    """
    context.obj = runtime_dir


@ctl.command()
@ctl_command
def status(runtime_dir: str, as_json: bool) -> None:
    """The server, its processes and addresses, its models.

    \b
    Example:  mmsup ctl status --json
    """
    show_result("status", call_server(runtime_dir, "status"), as_json)


@ctl.command("list")
@ctl_command
def list_(runtime_dir: str, as_json: bool) -> None:
    """The models: wanted, state, versions, reason.

    \b
    Example:  mmsup ctl list
    """
    show_result("models", call_server(runtime_dir, "list"), as_json)


@ctl.command()
@ctl_command
def ps(runtime_dir: str, as_json: bool) -> None:
    """The processes: memory against its cap, restarts, requests, age.

    \b
    Example:  mmsup ctl ps
    """
    show_result("processes", call_server(runtime_dir, "ps"), as_json)


@ctl.command()
@click.argument("model")
@click.option("--config", metavar="JSON", help="A model configuration to load with, as JSON or @FILE.")
@ctl_command
def load(runtime_dir: str, as_json: bool, model: str, config: str | None) -> None:
    """Load a model, or load it again; returns when it serves.

    \b
    Example:  mmsup ctl load digits
    """
    arguments = {"name": model} | ({"config": read_config_argument(config)} if config is not None else {})
    _run_change("load", arguments, runtime_dir, as_json)


@ctl.command()
@click.argument("model")
@ctl_command
def unload(runtime_dir: str, as_json: bool, model: str) -> None:
    """Unload a model; what it is working on is finished first.

    \b
    Example:  mmsup ctl unload digits
    """
    _run_change("unload", {"name": model}, runtime_dir, as_json)


@ctl.command()
@click.option("--force", is_flag=True, help="Also where the keeper's own code is the same.")
@ctl_command
def upgrade(runtime_dir: str, as_json: bool, force: bool) -> None:
    """Go over to the code on disk; no request fails, no connection is cut.

    The keeper stays the same process; a new brain, new gateways and new workers follow the old ones, each ready before
    the other leaves. What cannot be followed stays as it was, and is named.

    \b
    Example:  mmsup ctl upgrade
    """
    arguments = {"ticket": secrets.token_hex(8), "force": force}
    ticker = ProgressLine()
    try:
        result = call_server(runtime_dir, "upgrade", arguments, progress=None if as_json else ticker)
    finally:
        ticker.close()
    show_result("upgraded", result, as_json)


@ctl.command()
@click.argument("model")
@ctl_command
def show(runtime_dir: str, as_json: bool, model: str) -> None:
    """One model: configuration, tensors, workers, faults, its story.

    \b
    Example:  mmsup ctl show digits
    """
    show_result("model", call_server(runtime_dir, "show", {"name": model}), as_json)


@ctl.command()
@click.argument("model")
@click.option(
    "--lines", "-n", default=100, show_default=True, type=click.IntRange(min=0), help="How many, from the end."
)
@_follow
@click.option("--raw", is_flag=True, help="Control characters as they are, not escaped.")
@ctl_command
def logs(runtime_dir: str, as_json: bool, model: str, lines: int, follow: bool, raw: bool) -> None:
    """What a model's workers wrote to standard output and error.

    \b
    Example:  mmsup ctl logs digits --lines 20
    """
    arguments: Json = {"name": model, "lines": lines}

    def write(line: object) -> None:
        click.echo(str(line) if raw else printable(str(line)), color=raw or None)

    if follow:
        arguments["follow"] = True
        _follow_stream(
            "logs", arguments, runtime_dir, lambda each: print_json(each) if as_json else write(each["line"])
        )
        return
    result = call_server(runtime_dir, "logs", arguments)
    if as_json:
        print_json(result)
        return
    for line in result["lines"]:
        write(line)


@ctl.command()
@click.argument("model", required=False)
@click.option("--count", "-n", type=click.IntRange(min=1), help="How many, from the end.")
@_follow
@ctl_command
def events(runtime_dir: str, as_json: bool, model: str | None, count: int | None, follow: bool) -> None:
    """What happened, and why: starts, deaths with their cause, restarts.

    \b
    Example:  mmsup ctl events digits --count 10
              mmsup ctl events --follow --json
    """
    arguments: Json = {name: value for name, value in (("model", model), ("count", count)) if value is not None}
    if follow:
        arguments["follow"] = True

        def write(line: Json) -> None:
            print_json(line["event"]) if as_json else click.echo(load_views().event(line["event"]))

        _follow_stream("events", arguments, runtime_dir, write)
        return
    result = call_server(runtime_dir, "events", arguments)
    if as_json:
        print_json(result)
        return
    for each in result["events"]:
        click.echo(load_views().event(each))


@ctl.command()
@click.argument("model")
@click.option(
    "--death",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Which one: 1 is the last, 2 the one before.",
)
@click.option(
    "--bundle", metavar="FILE", help="Write all that is on record of it to FILE, as JSON; - is standard output."
)
@ctl_command
def why(runtime_dir: str, as_json: bool, model: str, death: int, bundle: str | None) -> None:
    """Why a model's worker died: the evidence, who was concerned, what followed, what to do.

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


@ctl.command()
@click.argument("model")
@click.option("--version", default="", metavar="V", help="A version; without one the server chooses.")
@click.option("--data", metavar="JSON", help="Values by input, as '{\"x\": [[1, 2]]}'; shapes follow from the nesting.")
@click.option(
    "--json-body",
    type=click.File("rb"),
    metavar="FILE",
    help="A whole request as the protocol has it; - is standard input.",
)
@click.option("--timeout", "timeout_s", default=70.0, show_default=True, help="Seconds to wait for the answer.")
@ctl_command
def infer(
    runtime_dir: str,
    as_json: bool,
    model: str,
    version: str,
    data: str | None,
    json_body: BinaryIO | None,
    timeout_s: float,
) -> None:  # one parameter an option, as click hands them over
    """Run a model once, over the server's HTTP address.

    \b
    Example:  mmsup ctl infer digits --data '{"x": [0, 0, 5, 13]}'
              mmsup ctl infer digits --json-body request.json
    """
    from mmsup.supervisor.cli.ctl_infer import InferenceClient, build_request, model_path  # noqa: PLC0415 - this verb alone pays for it

    if (data is None) == (json_body is None):
        raise click.UsageError("give the values by either --data or --json-body")
    values = parse_object(data, "--data") if data is not None else None
    address = call_server(runtime_dir, "status").get("addresses", {}).get("http")
    if not address:
        raise ServerRefused("unavailable", "the server has no HTTP address")
    door, path = InferenceClient(address, timeout_s), model_path(model, version)
    try:
        body = (
            json_body.read()
            if json_body
            else json.dumps(build_request(values or {}, door.request("GET", path))).encode()
        )
        reply = door.request("POST", f"{path}/infer", body)
    finally:
        door.close()
    if as_json:
        print_json(reply)
        return
    for each in reply.get("outputs", []):
        name, datatype = cell(each.get("name")), cell(each.get("datatype"))
        click.echo(f"{name}  {datatype}  {each.get('shape')}  {json.dumps(each.get('data'))}")


def _run_change(verb_name: str, arguments: Json, runtime_dir: str, as_json: bool) -> None:
    ticker = ProgressLine()
    try:
        result = call_server(runtime_dir, verb_name, arguments, progress=None if as_json else ticker)
    finally:
        ticker.close()
    show_result("changed", result, as_json)


def _follow_stream(verb_name: str, arguments: Json, runtime_dir: str, write: Progress) -> None:
    try:
        call_server(runtime_dir, verb_name, arguments, progress=write, timeout_s=None)
    except KeyboardInterrupt:
        click.echo(err=True)


def _write_report(bundle: Json | None, path: str) -> None:
    """A bundle to where it was asked for; it may hold what the model printed, so it is the owner's to read alone."""
    if bundle is None:
        raise CommandFailed("there is no bundle: no death is on record")
    text = json.dumps(bundle, indent=1) + "\n"
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from None


for _group in (quarantine, devices):
    ctl.add_command(_group)
