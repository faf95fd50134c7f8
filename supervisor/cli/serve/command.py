"""`mmsup serve`: read the configuration and exec the keeper.

Flags, environment and file become one Settings object (config/server_options.py), which is written into a memfd. Then
the keeper replaces this program in the same process: the parent (systemd, a shell) has the keeper as its child, and
nothing that was imported here stays in memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.command.failure import CommandFailed
from mmsup.supervisor.cli.output.text import printable
from mmsup.supervisor.cli.serve.exposure import exposure_error, insecure_option
from mmsup.supervisor.cli.serve.flags import given_flags, server_flags
from mmsup.supervisor.cli.serve.triton_flags import ignored_flag_warnings, triton_flags
from mmsup.supervisor.config.server_options import read_config
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.linux import required_calls
from mmsup.supervisor.linux.required_calls import fill_standard_descriptors
from mmsup.supervisor.repository.scanner import unreadable_repositories

KEEPER_MODULE: Final = "mmsup.supervisor.keeper"


@click.command(short_help="Serve a directory of models in the foreground.")
@server_flags
@insecure_option
@triton_flags
def serve(insecure: bool | None, **parsed: object) -> None:
    """Serve a directory of models in the foreground; SIGTERM drains and ends with 0.

    Every flag can also be set in the environment, as MMSUP_HTTP_PORT for --http-port, and most in the file that
    --config names. A flag takes precedence over the environment, the environment over the file.

    \b
    Example:  mmsup serve --model-repository models
              mmsup serve --model-repository models --http-port 0 --gateways 2
    \b
    Exit codes: 0 done, 2 wrong usage or configuration, 3 another server holds the directory.
    """
    fill_standard_descriptors()
    for text in ignored_flag_warnings(parsed):
        _warn(text)
    settings = _settings(parsed, os.environ)
    refusal = exposure_error(settings)
    if refusal and not insecure:
        raise CommandFailed(refusal, exit_codes.USAGE)
    if faults := unreadable_repositories(settings):
        raise CommandFailed(
            "\n".join(f"the model repository {each.place} {each.text}" for each in faults), exit_codes.USAGE
        )
    if text := required_calls.refusal():
        raise CommandFailed(text, exit_codes.USAGE)
    become_keeper(settings)


def _settings(parsed: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Print the warnings of the configuration; CommandFailed if it has errors."""
    config = read_config(given_flags(parsed), environ, os.getuid())
    for each in config.warnings:
        _warn(str(each))
    if config.settings is None:
        raise CommandFailed("\n".join(str(fault) for fault in config.errors), exit_codes.USAGE)
    return config.settings


def _warn(text: str) -> None:
    click.echo(f"mmsup: warning: {printable(text)}", err=True)


def become_keeper(settings: Settings) -> NoReturn:
    """Replace this program by the keeper, which owns the descriptor that its argument names."""
    fd = os.memfd_create("mmsup-settings", 0)  # without MFD_CLOEXEC: it crosses the exec
    with open(fd, "w", encoding="utf-8", closefd=False) as file:
        file.write(settings.to_json())
    os.lseek(fd, 0, os.SEEK_SET)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed when this program was started
            stream.flush()
    try:
        os.execv(sys.executable, [sys.executable, "-P", "-m", KEEPER_MODULE, f"settings={fd}"])  # noqa: S606 - no shell
    except OSError as error:
        text = f"{sys.executable} cannot be run by this user: {error.strerror}: install mmsup where it can be read"
        raise CommandFailed(text, exit_codes.USAGE) from None
