"""Host policy: which host names a listener answers to, and from which web pages it takes changes. Pure.

A web page that the operator's browser shows may send requests to loopback. What protects from it:

- A page whose own name resolves to 127.0.0.1 (DNS rebinding) sends that name as Host. A loopback listener answers to
  its own names alone, and to those of `--allow-host`.
- Any other page sends Origin or Sec-Fetch-Site. Endpoints that change something refuse those of other sites, and a body
  that a page may send without asking first (`text/plain`). Clients that are no browsers send neither of the two.

Names are compared without the port.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from multidict import MultiMapping

from mmsup.ipc.errors import CallerError

ANY: Final = "*"
_LOCAL_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
_PORT: Final = re.compile(r":[0-9]*$", re.ASCII)
_BRACKETS: Final = re.compile(r"\[([0-9a-f:.]+)\](?::[0-9]*)?", re.ASCII)
_JSON: Final = re.compile(r"application/(?:[a-z0-9.+-]+\+)?json[ \t]*(?:;|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Of one listener. `names` None: it answers to any."""

    names: frozenset[str] | None = None

    def allows(self, name: str) -> bool:
        return self.names is None or name in self.names or _is_loopback(name)


ANY_HOST: Final = HostPolicy()
"""For UNIX sockets, which no web page reaches."""


def listener_policy(address: str, machine: str, allowed: Iterable[str], *, is_loopback: bool) -> HostPolicy:
    """The policy of a TCP listener bound to `address`. One that other machines reach has names that nobody knows here:
    it answers to any, unless there are `allowed` ones."""
    names = frozenset(each.lower() for each in allowed)
    if ANY in names or (not is_loopback and not names):
        return ANY_HOST
    return HostPolicy(names | _LOCAL_NAMES | {address.lower(), machine.lower()})


def host_name(value: str) -> str:
    """The name in a Host header or the authority of a URL: in lower case, without port, brackets and final dot.

    Brackets around anything but an IPv6 address, or with anything but a port behind them, stay: no name has any.
    """
    name = value.strip().lower()
    if name.startswith("["):
        found = _BRACKETS.fullmatch(name)
        return found[1] if found and _is_ipv6(found[1]) else name
    return _PORT.sub("", name).removesuffix(".")


def check_host(policy: HostPolicy, hosts: Iterable[str], target: str) -> None:
    """CallerError if a request is for another host, by one of its Host headers or by an absolute `target`."""
    if policy.names is None:
        return
    names = [host_name(each) for each in hosts]
    _, scheme, rest = target.partition("://")
    if scheme and not target.startswith("/"):
        names.append(host_name(re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]))
    for name in names:
        if not name and not policy.allows(name):
            raise CallerError("forbidden", "the Host header is empty: send the name that this server is called by")
        if not policy.allows(name):
            text = f"this server does not answer to the host name '{name:.80}': to allow it, start it with"
            raise CallerError("forbidden", f"{text} --allow-host {name:.80}")


def check_change(policy: HostPolicy, headers: MultiMapping[str], *, has_body: bool) -> None:
    """CallerError if a request that changes something may come from a web page of another site, by any of its
    headers of a name that is given more than once."""
    origins, sites = headers.getall("Origin", []), headers.getall("Sec-Fetch-Site", [])
    if policy.names is None or not (origins or sites):
        return
    for origin in origins:
        if not policy.allows(host_name(origin.partition("://")[2])):
            text = f"a web page of '{origin:.80}' may not change anything here: to allow it, start the server with"
            raise CallerError("forbidden", f"{text} --allow-host and its host name")
    own_sites = ("same-origin", "none", "same-site") if origins else ("same-origin", "none")
    if any(site.lower() not in own_sites for site in sites):
        raise CallerError("forbidden", "a web page of another site may not change anything here")
    if has_body and not _JSON.match(headers.get("Content-Type", "")):
        raise CallerError("unsupported_media", "a web page must send this as application/json")


def _is_loopback(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _is_ipv6(name: str) -> bool:
    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True
