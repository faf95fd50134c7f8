"""The command `mmsup chaos`: parses its options, makes the run, prints the report. Imported only when it is called."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
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
from mmsup.supervisor.chaos.analysis.timeline import Timeline, timeline_of
from mmsup.supervisor.chaos.clients.http_client import HttpClient
from mmsup.supervisor.chaos.clients.protocol import V2Adapter
from mmsup.supervisor.chaos.observe.history import History
from mmsup.supervisor.chaos.plan.catalog import (
    FAULTS,
    GRPCIO_FRONT,
    KEEPER_FAULTS,
    SERVICE_MANAGER,
    FaultClass,
    ModelRole,
    select_faults,
)
from mmsup.supervisor.chaos.runner import ChaosOptions, run_against, run_local
from mmsup.supervisor.chaos.server import local_server
from mmsup.supervisor.chaos.server.target import Target
from mmsup.supervisor.cli.command.failure import CommandFailed
from mmsup.supervisor.cli.ctl.control_client import NoServer, ServerRefused, call_server
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.units import duration

MIN_SECONDS: Final = 16.0
"""A shorter run has no time for a fault."""
MIN_MODELS: Final = 2


@click.command(short_help="Inject faults under load, and report what clients see.")
@click.option(
    "--seconds", default=120.0, show_default=True, help=f"At least {MIN_SECONDS:g}; a sixth of it without faults."
)
@click.option("--seed", type=int, help="Of the plan and of the requests' times; a random one is printed.")
@click.option(
    "--models", default=21, show_default=True, help="Models of the server that is started; --faults may add some."
)
@click.option(
    "--rate", default=20.0, show_default=True, help="Requests per second to each healthy model; half to the others."
)
@click.option(
    "--every", default="1s..3s", show_default=True, metavar="FROM..TO", help="The interval between two faults."
)
@click.option("--faults", "names", default="", metavar="NAME,…", help="Only these; `--faults list` prints them all.")
@click.option(
    "--grpc-front", type=click.Choice(["own", "grpcio"]), help="What serves gRPC, over which calls go as well then."
)
@click.option("--with-keeper", is_flag=True, help="Also kill the keeper: the whole server ends and is started again.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="The report as JSON.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Plots of the run.")
@click.option(
    "--history", "history_file", type=click.Path(path_type=Path), metavar="FILE", help="Every record, as JSON lines."
)
@click.option("--url", default="", metavar="URL", help="Test this running server instead of starting one.")
@click.option("--yes-break-it", "consent", is_flag=True, help="Consent to faults in the server at --url.")
@click.option("--victim", "victims", multiple=True, metavar="MODEL", help="With --url: a fault model that gets faults.")
@click.option("--healthy", multiple=True, metavar="MODEL", help="With --url: a fault model that only gets requests.")
@click.option("--runtime-dir", default="", metavar="DIR", help="With --url: that server is mmsup, on this machine.")
@click.option("--json-only", is_flag=True, help="With --url: send no binary tensors.")
def chaos(**flags: Any) -> None:  # what click parsed
    """Inject faults into a server under load, and report what its clients see.

    Starts a server with fault models, unless --url names one. docs/chaos.md describes the faults, the checks and the
    report.

    \b
    Example:  mmsup chaos --seconds 60 --seed 7 --plots /tmp/chaos
              mmsup chaos --url http://127.0.0.1:8000 --yes-break-it --victim bad --healthy good
    \b
    Exit codes: 0 no findings, 1 findings or no server, 2 wrong usage.
    """
    if flags["names"] == "list":
        for each in FAULTS:
            click.echo(f"{each.name:14} {each.row:4} by {each.method}{f', to {each.role} models' if each.role else ''}")
        return
    options = _run_options(flags)
    click.echo(f"seed {options.seed}", err=True)
    history = History(flags["history_file"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: the server that was started is stopped as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # a pause of this process would count as one of the server
    failed: list[BaseException] = []
    try:
        if flags["url"]:
            target, adapter = _target(flags, options.models), V2Adapter(binary=not flags["json_only"])
            asyncio.run(run_against(target, options, adapter, history, _progress))
        else:
            adapter = V2Adapter(
                has_batch_axis=local_server.has_batch_axis,
                is_streamed=local_server.is_streamed,
                is_ensemble=local_server.is_ensemble,
            )
            asyncio.run(run_local(options, adapter, history, _progress))
    except* local_server.ServerNotStarted as errors:
        failed = list(errors.exceptions)
    finally:
        _clear_progress()
        history.close()
        gc.enable()
    if failed:
        raise CommandFailed(str(_innermost(failed[0])))
    _report(history, flags)


def _innermost(error: BaseException) -> BaseException:
    return _innermost(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _check_usage(flags: Mapping[str, Any]) -> None:
    if flags["seconds"] < MIN_SECONDS:
        raise click.UsageError(f"--seconds must be at least {MIN_SECONDS:g}")
    if flags["rate"] <= 0 or flags["models"] < MIN_MODELS:
        raise click.UsageError(f"--rate must be above 0, and --models at least {MIN_MODELS}")
    if flags["url"] and not flags["consent"]:
        raise click.UsageError("faults are injected into the server at --url: say --yes-break-it if you may")
    if flags["url"] and not flags["victims"]:
        raise click.UsageError("--url needs at least one --victim")
    if not flags["url"] and (flags["victims"] or flags["healthy"] or flags["runtime_dir"] or flags["json_only"]):
        raise click.UsageError("--victim, --healthy, --runtime-dir and --json-only go with --url")
    if flags["url"] and flags["grpc_front"]:
        raise click.UsageError("--grpc-front is for a server that chaos starts")
    if flags["grpc_front"] and importlib.util.find_spec("grpc") is None:
        raise click.UsageError(
            "--grpc-front needs the grpcio library, which is not installed: pip install 'mmsup[grpc]'"
        )
    if flags["url"] and flags["with_keeper"]:
        raise click.UsageError("--with-keeper is for a server that chaos starts: somebody has to start it again")


def _run_options(flags: Mapping[str, Any]) -> ChaosOptions:
    _check_usage(flags)
    try:
        faults = select_faults(flags["names"])
        if flags["with_keeper"]:
            faults = tuple(dict.fromkeys((*faults, *select_faults(",".join(KEEPER_FAULTS)))))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if flags["names"] and flags["grpc_front"] != GRPCIO_FRONT and any(each.requires == GRPCIO_FRONT for each in faults):
        raise click.UsageError("kill_front is for a server with --grpc-front grpcio")
    seed = random.SystemRandom().randrange(1 << 32) if flags["seed"] is None else flags["seed"]
    needed = {each.role for each in faults if each.role} if flags["names"] else set[ModelRole]()
    models = local_server.model_roles(flags["models"], needed)
    if flags["url"]:
        models = dict.fromkeys(flags["healthy"], ModelRole.HEALTHY) | dict.fromkeys(flags["victims"], ModelRole.CRASHY)
        faults = tuple(_for_any_victim(each, is_named=bool(flags["names"])) for each in faults)
    interval_s = _interval(flags["every"])
    grpc_front = flags["grpc_front"] or ""
    return ChaosOptions(seed, flags["seconds"], interval_s, flags["rate"], faults, models, grpc_front=grpc_front)


def _for_any_victim(fault: FaultClass, *, is_named: bool) -> FaultClass:
    """The fault for a server at --url, where a victim has no role; a named one is injected even if its capability, a
    memory cap for instance, cannot be verified."""
    requires = "" if is_named and fault.requires != SERVICE_MANAGER else fault.requires
    return replace(fault, role=fault.role and ModelRole.CRASHY, requires=requires)


def _interval(text: str) -> tuple[float, float]:
    first, dots, last = text.partition("..")
    try:
        least, most = duration(first), duration(last if dots else first)
    except InvalidValue as error:
        raise click.UsageError(f"--every: {error}") from None
    if not 0 < least <= most:
        raise click.UsageError("--every is two durations, as 1s..3s")
    return least, most


def _target(flags: Mapping[str, Any], models: Mapping[str, ModelRole]) -> Target:
    address = urlsplit(flags["url"])
    if address.scheme != "http" or not address.hostname:
        raise click.UsageError("--url is http://HOST:PORT")
    if not flags["runtime_dir"]:
        return Target(HttpClient(address.hostname, address.port or 80), models, title=flags["url"])
    try:
        status = call_server(flags["runtime_dir"], "status")
    except (NoServer, ServerRefused) as error:
        raise CommandFailed(str(error)) from None
    return local_server.make_target(status, flags["runtime_dir"], models)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text} ", err=True, nl=False)


def _clear_progress() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", err=True, nl=False)


def _report(history: History, flags: Mapping[str, Any]) -> None:
    findings = check(history.records)
    timeline = timeline_of(history.records)
    statistics = run_statistics(timeline, findings)
    click.echo(report_table(timeline, statistics))
    if flags["json_file"]:
        flags["json_file"].write_text(json.dumps(report_json(timeline, statistics), indent=1) + "\n")
    if flags["plots"]:
        _draw(timeline, flags["plots"])
    if findings:
        raise click.exceptions.Exit(exit_codes.REFUSED)


def _draw(timeline: Timeline, folder: Path) -> None:
    from mmsup.supervisor.chaos.analysis.plots import draw  # noqa: PLC0415 - imported only for --plots

    try:
        for each in draw(timeline, folder):
            click.echo(f"wrote {each}", err=True)
    except ImportError:
        raise CommandFailed("--plots needs matplotlib: pip install 'mmsup[bench]'") from None
