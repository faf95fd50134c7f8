"""`mmsup serve`: from a command line to the keeper, in the same process.

Flags, environment and file become one Settings (config.py), which goes into a memfd; then this process image is
replaced by the keeper's, which reads it there. Same pid, so whoever started us (systemd, a shell) has the keeper as
its child, and nothing that was imported here is in the keeper's memory.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, TypeVar

import click

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.command_failed import CommandFailed
from mmsup.supervisor.cli.options import given_flags, ignored_flag_warnings, server_flags, triton_flags
from mmsup.supervisor.cli.text import printable
from mmsup.supervisor.config.server_options import read_config
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.repository.scanner import unreadable_repositories

F = TypeVar("F", bound=Callable[..., object])

KEEPER_MODULE: Final = "mmsup.supervisor.keeper"


def insecure_option(command: F) -> F:
    """The one flag that is no option of the configuration: a word of agreement."""
    return click.option(
        "--insecure",
        type=bool,
        is_flag=False,
        flag_value=True,
        envvar="MMSUP_INSECURE",
        metavar="BOOL",
        help="Agree to bind an address that other machines reach, without encryption or keys.",
    )(command)


@click.command()
@server_flags
@insecure_option
@triton_flags
def serve(insecure: bool | None, **parsed: object) -> None:
    """Serve a directory of models in the foreground; SIGTERM drains and ends with 0.

    Every flag may also stand in the environment, as MMSUP_HTTP_PORT for --http-port, and most in the file that --config
    names. A flag wins over the environment, that over the file.

    \b
    Example:  mmsup serve --model-repository models
              mmsup serve --model-repository models --http-port 0 --gateways 2
    \b
    Exit codes: 0 done, 2 wrong usage or configuration, 3 another server holds the directory.
    """
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
    become_keeper(settings)


def _settings(parsed: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """The settings; what only concerns them is said, what is wrong with them ends the command."""
    reading = read_config(given_flags(parsed), environ, os.getuid())
    for each in reading.warnings:
        _warn(str(each))
    if reading.settings is None:
        raise CommandFailed("\n".join(str(fault) for fault in reading.errors), exit_codes.USAGE)
    return reading.settings


def _warn(text: str) -> None:
    click.echo(f"mmsup: warning: {printable(text)}", err=True)


def exposure_error(settings: Settings) -> str:
    """Why these listeners are not to be opened without a word of the operator; empty if they are private."""
    hosts = {settings.host} | ({settings.metrics_host} if settings.metrics_port >= 0 else set[str]())
    for host in sorted(hosts):
        if not is_loopback(host):
            return (
                f"{host} can be reached from other machines, and there is neither encryption nor a key here: "
                "bind 127.0.0.1 and put a proxy in front, or say --insecure"
            )
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; a name other than `localhost` may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def become_keeper(settings: Settings) -> NoReturn:
    """Replace this process by the keeper; it owns the descriptor that its argument names."""
    fd = os.memfd_create("mmsup-settings", 0)  # without MFD_CLOEXEC: it crosses the exec
    with open(fd, "w", encoding="utf-8", closefd=False) as file:
        file.write(settings.to_json())
    os.lseek(fd, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", KEEPER_MODULE, f"settings={fd}"])  # noqa: S606 - no shell is meant
