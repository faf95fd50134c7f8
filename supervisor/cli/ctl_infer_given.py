"""JSON that is given on the command line."""

from __future__ import annotations

import json
from typing import cast

import click

from mmsup.supervisor.cli.control_client import Json


def parse_object(text: str, option: str) -> Json:
    """The object that an option holds."""
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"{option} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise click.UsageError(f"{option} is not a JSON object")
    return cast("Json", parsed)


def read_config_argument(given: str) -> str:
    """The configuration that `--config` holds or names, as the JSON text that goes to the server."""
    if given.startswith("@"):
        try:
            with open(given[1:], encoding="utf-8") as file:
                given = file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"{given[1:]}: {error}") from None
    parse_object(given, "--config")
    return given
