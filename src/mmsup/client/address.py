"""Where a server is: `host:port`, `http://host:port`, or `unix:/path` of a UNIX socket. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFAULT_PORT: Final = 8000


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """A UNIX socket if `path` is set."""

    host: str
    port: int = DEFAULT_PORT
    path: str = ""

    @property
    def host_header(self) -> str:
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else self.host_header


def parse_address(text: str) -> ServerAddress:
    """ValueError for a text that is no address."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ValueError("unix: needs the path of a socket")
        return ServerAddress("", path=path)
    if text.startswith("https://"):
        raise ValueError("https is not spoken here: put the address of a proxy on this machine")
    place = text.removeprefix("http://").rstrip("/")
    if "/" in place or not place:
        raise ValueError(f"{text!r} is no address: one is localhost:8000, http://localhost:8000 or unix:/path")
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):  # no port, or an IPv6 address alone
        return ServerAddress(place.strip("[]"))
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{text!r} has the port {port!r}, which is none")
    return ServerAddress(host.strip("[]"), int(port))
