"""`mmsup check`: read configuration and repositories as a server does, print a report, start nothing."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.output.tables import draw
from mmsup.supervisor.cli.output.text import cell
from mmsup.supervisor.cli.serve.exposure import exposure_error, insecure_option
from mmsup.supervisor.cli.serve.flags import given_flags, server_flags
from mmsup.supervisor.cli.serve.triton_flags import ignored_flag_warnings, triton_flags
from mmsup.supervisor.config.server_options import read_config
from mmsup.supervisor.config.units import size_text
from mmsup.supervisor.repository import validation_report
from mmsup.supervisor.repository.contents.model_files import ContentReader
from mmsup.supervisor.repository.scanner import scan

Report = dict[str, Any]  # JSON, from validation_report.py


@click.command()
@server_flags
@insecure_option
@triton_flags
@click.option("--explain", is_flag=True, help="Show also where the value of each option came from.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def check(insecure: bool | None, explain: bool, as_json: bool, **parsed: object) -> None:
    """Validate configuration and models; start nothing.

    Takes the flags of serve, and reads the models' files. No code of a model is run.

    \b
    Example:  mmsup check --model-repository models
              mmsup check --config server.yaml --explain
    \b
    Exit codes: 0 no faults, 2 there are faults (all are shown).
    """
    config = read_config(given_flags(parsed), os.environ, os.getuid())
    settings = config.settings
    found = validation_report.build_report(
        settings or config.errors,
        scan(settings) if settings else None,
        config.warnings,
        config.origins if explain else (),
        ContentReader().read,
    )
    found["warnings"] += [
        {"place": text.partition(":")[0], "text": text.partition(": ")[2]} for text in ignored_flag_warnings(parsed)
    ]
    refusal = exposure_error(settings) if settings else ""
    if refusal and not insecure:
        found["faults"].append({"place": "--host", "text": refusal})
        found["ok"] = False
    if as_json:
        click.echo(json.dumps(found))
    else:
        _draw(found)
    raise SystemExit(exit_codes.SUCCESS if found["ok"] else exit_codes.USAGE)


def _draw(found: Report) -> None:
    """Options, models, warnings, faults: the most important lines last, next to the prompt."""
    if "options" in found:
        draw(["OPTION", "VALUE", "FROM"], [_option(each) for each in found["options"]])
        click.echo()
    if found["models"]:
        draw(
            ["MODEL", "VERSION", "ENGINE", "ARTEFACT", ">BATCH", ">INSTANCES", ">CAP", "FAULTS"],
            [row for model in found["models"] for row in _model(model)],
        )
    for kind in ("warning", "fault"):
        for each in found[f"{kind}s"]:
            click.echo(f"{kind}: {cell(each['place'])}: {cell(each['text'])}")
            for line in each.get("paste", "").splitlines():
                click.echo(f"    {cell(line)}")
    if found["ok"]:
        click.echo("no faults")


def _option(origin: Report) -> list[str]:
    return [cell(origin["option"]), cell(json.dumps(origin["value"])), cell(origin["source"])]


def _model(model: Report) -> list[list[str]]:
    count = len(model["faults"])
    if not model["versions"]:
        return [[cell(model["name"]), "", "", "", "", "", "", str(count or "")]]
    return [
        [
            cell(model["name"]),
            cell(each["version"]),
            cell(each["engine"]),
            cell(each["artefact"]),
            cell(each["max_batch_size"] or ""),
            cell(each["instances"]),
            size_text(each["memory_bytes"]) if each["memory_bytes"] else "",
            str(count or ""),
        ]
        for each in model["versions"]
    ]
