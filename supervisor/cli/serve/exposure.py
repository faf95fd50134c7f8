"""Protection against listening on addresses that other machines can reach: `--insecure`."""

from __future__ import annotations

import ipaddress

import click

from mmsup.supervisor.config.settings import Settings

insecure_option = click.option(
    "--insecure",
    type=bool,
    is_flag=False,
    flag_value=True,
    envvar="MMSUP_INSECURE",
    metavar="BOOL",
    help="Agree to bind an address that other machines reach, without encryption or keys.",
)


def exposure_error(settings: Settings) -> str:
    """Why these listeners need --insecure; empty if only this machine reaches them."""
    hosts = {settings.host}
    hosts |= {settings.grpc_host} if settings.grpc_port >= 0 else set[str]()
    hosts |= {settings.metrics_host} if settings.metrics_port >= 0 else set[str]()
    for host in sorted(hosts):
        if not is_loopback(host):
            return (
                f"{host} can be reached from other machines, and there is neither encryption nor a key here: "
                "bind 127.0.0.1 and put a proxy in front, or give --insecure"
            )
    return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host. Names other than `localhost` are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
