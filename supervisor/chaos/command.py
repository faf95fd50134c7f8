"""`mmsup chaos`: faults on purpose, and a report.

Imported when the command is asked for, and nothing else pays for it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.analysis.checker import check
from mmsup.supervisor.chaos.analysis.report import report_json, report_table
from mmsup.supervisor.chaos.analysis.statistics import run_statistics
from mmsup.supervisor.chaos.analysis.timeline import timeline_of
from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.clients.protocol import V2Adapter
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import FAULTS, KEEPER_FAULTS, SERVICE_MANAGER, ModelRole, select_faults
from mmsup.supervisor.chaos.runner import ChaosOptions
from mmsup.supervisor.chaos.runner_runs import run_against, run_local
from mmsup.supervisor.chaos.server import local_server
from mmsup.supervisor.chaos.server.target import Target
from mmsup.supervisor.cli.command_failed import CommandFailed
from mmsup.supervisor.cli.control_client import NoServer, ServerRefused, call_server
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.units import duration

MIN_SECONDS: Final = 16.0
"""A shorter run would have no time for a fault."""
MIN_MODELS: Final = 2


@click.command()
@click.option("--seconds", default=120.0, show_default=True, help="How long clients ask; a sixth of it without faults.")
@click.option("--seed", type=int, help="Of the plan and of the arrivals; a random one is printed.")
@click.option("--models", default=8, show_default=True, help="Models of the server that is started.")
@click.option(
    "--rate", default=20.0, show_default=True, help="Requests a second to each healthy model; half to others."
)
@click.option(
    "--every", default="1s..3s", show_default=True, metavar="FROM..TO", help="The distance between two faults."
)
@click.option("--faults", "names", default="", metavar="NAME,…", help="Only these; `--faults list` prints them all.")
@click.option("--with-keeper", is_flag=True, help="Kill the keeper as well: everything ends, and is started again.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="The report as JSON.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Pictures of the run.")
@click.option(
    "--history", "history_file", type=click.Path(path_type=Path), metavar="FILE", help="Every request, line by line."
)
@click.option("--url", default="", metavar="URL", help="A running server instead of one of our own.")
@click.option("--yes-break-it", "consent", is_flag=True, help="Agree that what runs at --url is hurt.")
@click.option("--victim", "victims", multiple=True, metavar="MODEL", help="With --url: a fault model that may be hurt.")
@click.option("--healthy", multiple=True, metavar="MODEL", help="With --url: a fault model that is only asked.")
@click.option("--runtime-dir", default="", metavar="DIR", help="With --url: that server is mmsup, on this machine.")
@click.option("--json-only", is_flag=True, help="With --url: send no binary tensors.")
def chaos(**given: Any) -> None:  # what click parsed
    """Break a server on purpose, under load, and say what its clients saw.

    Starts a server of its own, unless --url names one. docs/chaos.md says what is done, what is checked and how the
    table is read.

    \b
    Example:  mmsup chaos --seconds 60 --seed 7 --plots /tmp/chaos
              mmsup chaos --url http://127.0.0.1:8000 --yes-break-it --victim bad --healthy good
    \b
    Exit codes: 0 nothing is wrong, 1 there are findings, or no server, 2 wrong usage.
    """
    if given["names"] == "list":
        for each in FAULTS:
            click.echo(f"{each.name:14} {each.row:4} by {each.method}{f', to {each.role} models' if each.role else ''}")
        return
    course = _run_options(given)
    click.echo(f"seed {course.seed}", err=True)
    history = History(given["history_file"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: the server of our own goes with us
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # a pause of ours would be told as one of the server's
    lost: list[BaseException] = []
    try:
        if given["url"]:
            strays: list[int] = []
            target = _target(given, course.models, strays)
            asyncio.run(
                run_against(target, strays, course, V2Adapter(binary=not given["json_only"]), history, _progress)
            )
        else:
            asyncio.run(run_local(course, V2Adapter(rows=True), history, _progress))
    except* local_server.ServerNotStarted as errors:
        lost = list(errors.exceptions)
    finally:
        _clear_progress()
        history.close()
        gc.enable()
    if lost:
        raise CommandFailed(str(_innermost(lost[0])))
    _report(history, given)


def _innermost(error: BaseException) -> BaseException:
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _run_options(given: Mapping[str, Any]) -> ChaosOptions:
    """What is to be done, or a UsageError."""
    if given["seconds"] < MIN_SECONDS:
        raise click.UsageError(f"--seconds must be at least {MIN_SECONDS:g}")
    if given["rate"] <= 0 or given["models"] < MIN_MODELS:
        raise click.UsageError(f"--rate must be above 0, and --models at least {MIN_MODELS}")
    if given["url"] and not given["consent"]:
        raise click.UsageError("what runs at --url will be hurt: say --yes-break-it if you may")
    if given["url"] and not given["victims"]:
        raise click.UsageError("--url needs at least one --victim")
    if not given["url"] and (given["victims"] or given["healthy"] or given["runtime_dir"] or given["json_only"]):
        raise click.UsageError("--victim, --healthy, --runtime-dir and --json-only go with --url")
    if given["url"] and given["with_keeper"]:
        raise click.UsageError("--with-keeper is for a server of our own: somebody has to start it again")
    try:
        faults = select_faults(given["names"])
        if given["with_keeper"]:
            faults = tuple(dict.fromkeys((*faults, *select_faults(",".join(KEEPER_FAULTS)))))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    seed = random.SystemRandom().randrange(1 << 32) if given["seed"] is None else given["seed"]
    models = local_server.model_roles(given["models"])
    if given["url"]:
        named = bool(given["names"])
        models = dict.fromkeys(given["healthy"], ModelRole.HEALTHY) | dict.fromkeys(given["victims"], ModelRole.CRASHY)
        # A victim there may be asked for anything; whether it has a cap, whoever names the fault knows.
        faults = tuple(
            replace(
                each,
                role=each.role and ModelRole.CRASHY,
                requires=each.requires if not named or each.requires == SERVICE_MANAGER else "",
            )
            for each in faults
        )
    return ChaosOptions(seed, given["seconds"], _interval(given["every"]), given["rate"], faults, models)


def _interval(text: str) -> tuple[float, float]:
    first, dots, last = text.partition("..")
    try:
        least, most = duration(first), duration(last if dots else first)
    except InvalidValue as error:
        raise click.UsageError(f"--every: {error}") from None
    if not 0 < least <= most:
        raise click.UsageError("--every is two durations, as 1s..3s")
    return least, most


def _target(given: Mapping[str, Any], models: Mapping[str, ModelRole], strays: list[int]) -> Target:
    address = urlsplit(given["url"])
    if address.scheme != "http" or not address.hostname:
        raise click.UsageError("--url is http://HOST:PORT")
    if not given["runtime_dir"]:
        return Target(HttpClient(address.hostname, address.port or 80, strays.append), models, title=given["url"])
    try:
        status = call_server(given["runtime_dir"], "status")
    except (NoServer, ServerRefused) as error:
        raise CommandFailed(str(error)) from None
    return local_server.make_target(status, given["runtime_dir"], models, strays.append)


def _progress(text: str) -> None:
    """One line that changes on a terminal; elsewhere nothing."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} ", err=True, nl=False)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)


def _report(history: History, given: Mapping[str, Any]) -> None:
    findings = check(history.records)
    story = timeline_of(history.records)
    found = run_statistics(story, findings)
    click.echo(report_table(story, found))
    if given["json_file"]:
        given["json_file"].write_text(json.dumps(report_json(story, found), indent=1) + "\n")
    if given["plots"]:
        _draw(story, given["plots"])
    if findings:
        raise click.exceptions.Exit(exit_codes.REFUSED)


def _draw(story: Any, folder: Path) -> None:  # a Story
    from mmsup.supervisor.chaos.analysis.plots import draw  # noqa: PLC0415 - only who draws needs it

    try:
        for each in draw(story, folder):
            click.echo(f"wrote {each}", err=True)
    except ImportError:
        raise CommandFailed("--plots needs matplotlib: pip install 'mmsup[bench]'") from None
