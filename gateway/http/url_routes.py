"""URL routes: every path, its methods, the action of each, and from where it may be used. Pure.

Default deny: a path that is not in the table does not exist. Paths are exact; each part is percent-decoded once, and a
parameter must match its pattern.
"""

from __future__ import annotations

import enum
import re
import urllib.parse
from dataclasses import dataclass
from typing import Final

from mmsup.gateway.dispatch.route_table import MODEL_NAME


class Access(enum.Enum):
    OPEN = "open"
    CONTROL = "control"
    """Loopback and UNIX listeners only."""
    MEMORY = "memory"
    """Where clients may share memory, which the handlers check; no web page of another site."""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One row. `action`: key of the handler in api/app.py."""

    method: str
    path: str
    action: str
    access: Access = Access.OPEN


def _http_routes() -> list[HttpRoute]:
    control = Access.CONTROL
    rows = [
        HttpRoute("GET", "/", "page"),
        HttpRoute("GET", "/openapi.json", "openapi"),
        HttpRoute("GET", "/livez", "live"),
        HttpRoute("GET", "/healthz", "live"),
        HttpRoute("GET", "/readyz", "ready"),
        HttpRoute("GET", "/v2/health/live", "live"),
        HttpRoute("GET", "/v2/health/ready", "ready"),
        HttpRoute("GET", "/metrics", "metrics"),
        HttpRoute("GET", "/v2", "server"),
        HttpRoute("GET", "/v2/models", "models"),
        HttpRoute("GET", "/v2/models/stats", "all_stats"),
        HttpRoute("POST", "/v2/repository/index", "index"),
        HttpRoute("POST", "/v2/repository/models/{model}/load", "load", control),
        HttpRoute("POST", "/v2/repository/models/{model}/unload", "unload", control),
        HttpRoute("POST", "/mmsup/v1/models/{model}/sleep", "sleep", control),
        HttpRoute("POST", "/mmsup/v1/models/{model}/wake", "wake", control),
        HttpRoute("POST", "/v2/repository/{repository}/index", "other_repository"),
        HttpRoute("POST", "/v2/repository/{repository}/models/{model}/load", "other_repository", control),
        HttpRoute("POST", "/v2/repository/{repository}/models/{model}/unload", "other_repository", control),
        HttpRoute("GET", "/v1/models/{model}", "v1_model"),
        HttpRoute("POST", "/v1/models/{model}:predict", "predict"),
        HttpRoute("GET", "/v2/logging", "log"),
        HttpRoute("POST", "/v2/logging", "set_log", control),
    ]
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        rows += [
            HttpRoute("GET", base, "model"),
            HttpRoute("GET", f"{base}/ready", "model_ready"),
            HttpRoute("GET", f"{base}/config", "model_config"),
            HttpRoute("GET", f"{base}/stats", "model_stats"),
            HttpRoute("POST", f"{base}/infer", "infer"),
            HttpRoute("POST", f"{base}/generate", "generate"),
            HttpRoute("POST", f"{base}/generate_stream", "generate_stream"),
        ]
    for base in ("/v2", "/v2/models/{model}"):
        rows.append(HttpRoute("GET", f"{base}/trace/setting", "trace"))
        rows.append(HttpRoute("POST", f"{base}/trace/setting", "set_trace", control))
    for kind in ("system", "cuda"):
        for base in (f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}"):
            rows.append(HttpRoute("GET", f"{base}/status", f"{kind}_status"))
            rows.append(HttpRoute("POST", f"{base}/unregister", f"{kind}_unregister", Access.MEMORY))
        path = f"/v2/{kind}sharedmemory/region/{{region}}/register"
        rows.append(HttpRoute("POST", path, f"{kind}_register", Access.MEMORY))
    return rows


HTTP_ROUTES: Final = tuple(_http_routes())
PARAMETER_PATTERNS: Final = {
    "model": MODEL_NAME,
    "repository": MODEL_NAME,
    "version": re.compile(r"[A-Za-z0-9_.-]{1,64}"),
    "region": re.compile(r"[^\x00-\x1f]{1,255}"),
}


class _PathNode:
    """A node of the path tree; `methods`: the endpoints of the path that ends here."""

    def __init__(self) -> None:
        self.children: dict[str, _PathNode] = {}
        self.parameter: str = ""
        self.parameter_child: _PathNode | None = None
        self.suffixes: dict[str, _PathNode] = {}
        """Where more follows a parameter in the same part: `{model}:predict`."""
        self.methods: dict[str, HttpRoute] = {}


def _path_tree() -> _PathNode:
    root = _PathNode()
    for endpoint in HTTP_ROUTES:
        at = root
        for part in endpoint.path.split("/")[1:]:
            if part.startswith("{"):
                at.parameter, _, suffix = part[1:].partition("}")
                at.parameter_child = at.parameter_child or _PathNode()
                at = at.suffixes.setdefault(suffix, _PathNode()) if suffix else at.parameter_child
            else:
                at = at.children.setdefault(part, _PathNode())
        at.methods[endpoint.method] = endpoint
        if endpoint.method == "GET":
            at.methods["HEAD"] = endpoint
    return root


_ROOT: Final = _path_tree()


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """An existing path: its endpoints by method, and its parameters."""

    methods: dict[str, HttpRoute]
    names: dict[str, str]

    @property
    def allow(self) -> str:
        return ", ".join(sorted({*self.methods, "OPTIONS"}))


def match_path(target: str) -> RouteMatch | None:
    """The path of a request target, None if there is none. The query is ignored."""
    path = target.partition("?")[0]
    if not path.startswith("/"):  # the absolute form, as for a proxy
        scheme, _, rest = path.partition("://")
        path = f"/{rest.partition('/')[2]}" if scheme.lower() in ("http", "https") else ""
    return _walk(_ROOT, path.split("/")[1:], {})


def _walk(at: _PathNode, parts: list[str], names: dict[str, str]) -> RouteMatch | None:
    if not parts:
        return RouteMatch(at.methods, names) if at.methods else None
    part, rest = parts[0], parts[1:]
    if part in at.children:
        found = _walk(at.children[part], rest, names)
        if found is not None:
            return found
    if at.parameter_child is None:
        return None
    name = urllib.parse.unquote(part, errors="replace")
    child = at.parameter_child
    for suffix, special in at.suffixes.items():
        if name.endswith(suffix):
            name, child = name.removesuffix(suffix), special
    if not PARAMETER_PATTERNS[at.parameter].fullmatch(name):
        return None
    return _walk(child, rest, {**names, at.parameter: name})
