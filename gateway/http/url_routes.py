"""Every path that HTTP clients may name, the methods it has, and who may use them. Pure.

Default deny: what is not in the table does not exist. Paths are exact; each part is percent-decoded once and then,
where it is a name, held against the form of names.
"""

from __future__ import annotations

import enum
import re
import urllib.parse
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.dispatch.route_table import NAME


class Access(enum.Enum):
    """Where an endpoint may be used from."""

    OPEN = "open"
    CONTROL = "control"
    """Loopback and UNIX listeners only."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row: what to do (`app.py` knows how), and who may."""

    method: str
    path: str
    does: str
    access: Access = Access.OPEN


def _rows() -> list[Endpoint]:
    control = Access.CONTROL
    rows = [
        Endpoint("GET", "/livez", "live"),
        Endpoint("GET", "/healthz", "live"),
        Endpoint("GET", "/readyz", "ready"),
        Endpoint("GET", "/v2/health/live", "live"),
        Endpoint("GET", "/v2/health/ready", "ready"),
        Endpoint("GET", "/metrics", "metrics"),
        Endpoint("GET", "/v2", "server"),
        Endpoint("GET", "/v2/models", "models"),
        Endpoint("GET", "/v2/models/stats", "all_stats"),
        Endpoint("POST", "/v2/repository/index", "index"),
        Endpoint("POST", "/v2/repository/models/{model}/load", "load", control),
        Endpoint("POST", "/v2/repository/models/{model}/unload", "unload", control),
        Endpoint("POST", "/v2/repository/{repository}/index", "other_repository"),
        Endpoint("POST", "/v2/repository/{repository}/models/{model}/load", "other_repository", control),
        Endpoint("POST", "/v2/repository/{repository}/models/{model}/unload", "other_repository", control),
        Endpoint("GET", "/v2/logging", "no_logging"),
        Endpoint("POST", "/v2/logging", "no_logging", control),
    ]
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        rows += [
            Endpoint("GET", base, "model"),
            Endpoint("GET", f"{base}/ready", "model_ready"),
            Endpoint("GET", f"{base}/config", "model_config"),
            Endpoint("GET", f"{base}/stats", "model_stats"),
            Endpoint("POST", f"{base}/infer", "infer"),
            Endpoint("POST", f"{base}/generate", "no_generate"),
            Endpoint("POST", f"{base}/generate_stream", "no_generate"),
        ]
    for base in ("/v2", "/v2/models/{model}"):
        rows.append(Endpoint("GET", f"{base}/trace/setting", "no_trace"))
        rows.append(Endpoint("POST", f"{base}/trace/setting", "no_trace", control))
    for kind in ("system", "cuda"):
        for base in (f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}"):
            rows.append(Endpoint("GET", f"{base}/status", "no_regions" if base.endswith("memory") else "no_region"))
            rows.append(Endpoint("POST", f"{base}/unregister", "unregister"))
        rows.append(Endpoint("POST", f"/v2/{kind}sharedmemory/region/{{region}}/register", "no_register"))
    return rows


ENDPOINTS: Final = tuple(_rows())
_REGION: Final = re.compile(r"[^\x00-\x1f]{1,255}")
_FORMS: Final = {"model": NAME, "repository": NAME, "version": re.compile(r"[A-Za-z0-9_.-]{1,64}"), "region": _REGION}


class _Branch:
    """A node of the tree of paths: what follows it, and what it is itself."""

    def __init__(self) -> None:
        self.fixed: dict[str, _Branch] = {}
        self.name: str = ""
        self.named: _Branch | None = None
        self.methods: dict[str, Endpoint] = {}


def _tree() -> _Branch:
    root = _Branch()
    for endpoint in ENDPOINTS:
        at = root
        for part in endpoint.path.split("/")[1:]:
            if part.startswith("{"):
                at.named = at.named or _Branch()
                at.name = part[1:-1]
                at = at.named
            else:
                at = at.fixed.setdefault(part, _Branch())
        at.methods[endpoint.method] = endpoint
        if endpoint.method == "GET":
            at.methods["HEAD"] = endpoint
    return root


_ROOT: Final = _tree()


@dataclass(frozen=True, slots=True)
class Match:
    """A path that exists: its endpoints by method, and the names in it."""

    methods: dict[str, Endpoint]
    names: dict[str, str]

    @property
    def allow(self) -> str:
        """The value of an `Allow` header."""
        return ", ".join(sorted({*self.methods, "OPTIONS"}))


def find(target: str) -> Match | None:
    """What a request target names, None if nothing. The query is nobody's here."""
    path = target.partition("?")[0]
    if not path.startswith("/"):  # the absolute form, which a proxy would send
        scheme, _, rest = path.partition("://")
        path = f"/{rest.partition('/')[2]}" if scheme.lower() in ("http", "https") else ""
    return _walk(_ROOT, path.split("/")[1:], {})


def _walk(at: _Branch, parts: list[str], names: dict[str, str]) -> Match | None:
    if not parts:
        return Match(at.methods, names) if at.methods else None
    part, rest = parts[0], parts[1:]
    if part in at.fixed:
        found = _walk(at.fixed[part], rest, names)
        if found is not None:
            return found
    if at.named is None:
        return None
    name = urllib.parse.unquote(part, errors="replace")
    if not _FORMS[at.name].fullmatch(name):
        return None
    return _walk(at.named, rest, {**names, at.name: name})
