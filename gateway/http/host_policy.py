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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from mmsup.ipc.errors import CallerError

ANY: Final = "*"
_LOCAL_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
_PORT: Final = re.compile(r":[0-9]*$", re.ASCII)
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
    """The name in a Host header or the authority of a URL: in lower case, without port, brackets and final dot."""
    name = value.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
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
        if not policy.allows(name):
            text = f"this server does not answer to the host name '{name:.80}': to allow it, start it with"
            raise CallerError("forbidden", f"{text} --allow-host {name:.80}")


def check_change(policy: HostPolicy, headers: Mapping[str, str], *, has_body: bool) -> None:
    """CallerError if a request that changes something may come from a web page of another site."""
    origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
    if policy.names is None or (origin is None and site is None):
        return
    is_own = origin is not None and policy.allows(host_name(origin.partition("://")[2]))
    if origin is not None and not is_own:
        text = f"a web page of '{origin:.80}' may not change anything here: to allow it, start the server with"
        raise CallerError("forbidden", f"{text} --allow-host and its host name")
    own_sites = ("same-origin", "none", "same-site") if is_own else ("same-origin", "none")
    if site is not None and site.lower() not in own_sites:
        raise CallerError("forbidden", "a web page of another site may not change anything here")
    if has_body and not _JSON.match(headers.get("Content-Type", "")):
        raise CallerError("unsupported_media", "a web page must send this as application/json")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
