"""JSON arguments on the command line."""

from __future__ import annotations

import json
from typing import cast

import click

from mmsup.supervisor.cli.ctl.control_client import Json


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
