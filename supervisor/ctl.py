"""`mmsup ctl`: questions and orders to a running server, over its control socket.

Covers: verbs, their options, what of the answer goes to standard output and what to standard error.
Does not cover: the wire (client.py), what answers look like (views.py). Imports nothing heavy: every call pays.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

import click

from mmsup.ipc import exits
from mmsup.ipc.paths import default_runtime_dir
from mmsup.supervisor.client import Json, NoServer, Progress, Refused, ask
from mmsup.supervisor.failed import Failed
from mmsup.supervisor.given import config_text, object_of
from mmsup.supervisor.human import cell, printable
from mmsup.supervisor.ticker import Ticker

F = TypeVar("F", bound=Callable[..., object])


def _runtime_option(command: F) -> F:
    return click.option(
        "--runtime-dir",
        metavar="DIR",
        envvar="MMSUP_RUNTIME_DIR",
        help="Where the server's control socket lies (or MMSUP_RUNTIME_DIR).",
    )(command)


def _verb(command: F) -> F:
    """The options that every verb has, and the end that every failure comes to."""

    @functools.wraps(command)
    def run(**options: Any) -> None:  # what click parsed
        # An option after the verb is nearer than one before it.
        given = options.pop("runtime_dir") or click.get_current_context().obj
        try:
            command(runtime_dir=given or default_runtime_dir(os.getuid(), dict(os.environ)), **options)
        except Refused as error:
            raise Failed(error.text) from None
        except NoServer as error:
            raise Failed(str(error), exits.NO_SERVER) from None

    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
    return _runtime_option(as_json(run))  # type: ignore[return-value]  # wraps() keeps what click reads of F


_follow = click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")


def _print_json(result: object) -> None:
    click.echo(json.dumps(result))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@_runtime_option
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
@_verb
def status(runtime_dir: str, as_json: bool) -> None:
    """The server, its processes and addresses, its models.

    \b
    Example:  mmsup ctl status --json
    """
    _shown("status", ask(runtime_dir, "status"), as_json)


@ctl.command("list")
@_verb
def list_(runtime_dir: str, as_json: bool) -> None:
    """The models: wanted, state, versions, reason.

    \b
    Example:  mmsup ctl list
    """
    _shown("models", ask(runtime_dir, "list"), as_json)


@ctl.command()
@_verb
def ps(runtime_dir: str, as_json: bool) -> None:
    """The processes: memory against its cap, restarts, requests, age.

    \b
    Example:  mmsup ctl ps
    """
    _shown("processes", ask(runtime_dir, "ps"), as_json)


@ctl.command()
@click.argument("model")
@click.option("--config", metavar="JSON", help="A model configuration to load with, as JSON or @FILE.")
@_verb
def load(runtime_dir: str, as_json: bool, model: str, config: str | None) -> None:
    """Load a model, or load it again; returns when it serves.

    \b
    Example:  mmsup ctl load digits
    """
    arguments = {"name": model} | ({"config": config_text(config)} if config is not None else {})
    _change("load", arguments, runtime_dir, as_json)


@ctl.command()
@click.argument("model")
@_verb
def unload(runtime_dir: str, as_json: bool, model: str) -> None:
    """Unload a model; what it is working on is finished first.

    \b
    Example:  mmsup ctl unload digits
    """
    _change("unload", {"name": model}, runtime_dir, as_json)


@ctl.command()
@click.argument("model")
@_verb
def show(runtime_dir: str, as_json: bool, model: str) -> None:
    """One model: configuration, tensors, workers, faults, its story.

    \b
    Example:  mmsup ctl show digits
    """
    _shown("model", ask(runtime_dir, "show", {"name": model}), as_json)


@ctl.command()
@click.argument("model")
@click.option(
    "--lines", "-n", default=100, show_default=True, type=click.IntRange(min=0), help="How many, from the end."
)
@_follow
@click.option("--raw", is_flag=True, help="Control characters as they are, not escaped.")
@_verb
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
            "logs", arguments, runtime_dir, lambda each: _print_json(each) if as_json else write(each["line"])
        )
        return
    result = ask(runtime_dir, "logs", arguments)
    if as_json:
        _print_json(result)
        return
    for line in result["lines"]:
        write(line)


@ctl.command()
@click.argument("model", required=False)
@click.option("--count", "-n", type=click.IntRange(min=1), help="How many, from the end.")
@_follow
@_verb
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
            _print_json(line["event"]) if as_json else click.echo(_views().event(line["event"]))

        _follow_stream("events", arguments, runtime_dir, write)
        return
    result = ask(runtime_dir, "events", arguments)
    if as_json:
        _print_json(result)
        return
    for each in result["events"]:
        click.echo(_views().event(each))


@ctl.group()
def quarantine() -> None:
    """Requests that ended workers: what is refused, and until when.

    \b
    Example:  mmsup ctl quarantine list
    """


@quarantine.command("list")
@click.argument("model", required=False)
@_verb
def quarantine_list(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Requests that are refused (blocked), or run alone until it is known whether they do harm (suspect).

    \b
    Example:  mmsup ctl quarantine list digits
    """
    _shown("quarantine", ask(runtime_dir, "quarantine", {"model": model} if model else {}), as_json)


@quarantine.command("clear")
@click.argument("model", required=False)
@_verb
def quarantine_clear(runtime_dir: str, as_json: bool, model: str | None) -> None:
    """Forget what is known of a model's requests, or of all: nothing is refused until it ends a worker again.

    \b
    Example:  mmsup ctl quarantine clear digits
    """
    _shown("cleared", ask(runtime_dir, "quarantine_clear", {"model": model} if model else {}), as_json)


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
@_verb
def why(runtime_dir: str, as_json: bool, model: str, death: int, bundle: str | None) -> None:
    """Why a model's worker died: the evidence, who was concerned, what followed, what to do.

    \b
    Example:  mmsup ctl why digits
              mmsup ctl why digits --death 2 --bundle digits.json
    """
    result = ask(runtime_dir, "why", {"name": model, "death": death})
    if bundle is not None:
        _export(result.get("bundle"), bundle)
        if bundle == "-":
            return
    _shown("why", result, as_json)


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
@_verb
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
    from mmsup.supervisor.infer import Door, model_path, request_of  # noqa: PLC0415 - this verb alone pays for it

    if (data is None) == (json_body is None):
        raise click.UsageError("give the values by either --data or --json-body")
    values = object_of(data, "--data") if data is not None else None
    address = ask(runtime_dir, "status").get("addresses", {}).get("http")
    if not address:
        raise Refused("unavailable", "the server has no HTTP address")
    door, path = Door(address, timeout_s), model_path(model, version)
    try:
        body = json_body.read() if json_body else json.dumps(request_of(values or {}, door.call("GET", path))).encode()
        reply = door.call("POST", f"{path}/infer", body)
    finally:
        door.close()
    if as_json:
        _print_json(reply)
        return
    for each in reply.get("outputs", []):
        name, datatype = cell(each.get("name")), cell(each.get("datatype"))
        click.echo(f"{name}  {datatype}  {each.get('shape')}  {json.dumps(each.get('data'))}")


def _shown(view: str, result: Json, as_json: bool) -> None:
    if as_json:
        _print_json(result)
        return
    getattr(_views(), view)(result)


def _views() -> ModuleType:
    """How answers are drawn, imported when one is."""
    from mmsup.supervisor import views  # noqa: PLC0415 - neither `--help` nor `--json` pays for it

    return views


def _change(verb: str, arguments: Json, runtime_dir: str, as_json: bool) -> None:
    ticker = Ticker()
    try:
        result = ask(runtime_dir, verb, arguments, progress=None if as_json else ticker)
    finally:
        ticker.close()
    _shown("changed", result, as_json)


def _follow_stream(verb: str, arguments: Json, runtime_dir: str, write: Progress) -> None:
    try:
        ask(runtime_dir, verb, arguments, progress=write, silence_s=None)
    except KeyboardInterrupt:
        click.echo(err=True)


def _export(bundle: Json | None, path: str) -> None:
    """A bundle to where it was asked for; it may hold what the model printed, so it is the owner's to read alone."""
    if bundle is None:
        raise Failed("there is no bundle: no death is on record")
    text = json.dumps(bundle, indent=1) + "\n"
    if path == "-":
        click.echo(text, nl=False)
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(text.encode())
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from None
