"""What the server serves, for people: paths, and models with a request to copy, as JSON, plain text or a page. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable
from string import Template
from typing import Any, Final

from mmsup.gateway.api.description.example_request import example_request
from mmsup.gateway.api.description.operations import HTML, JSON, TEXT, operation
from mmsup.gateway.http.url_routes import HTTP_ROUTES
from mmsup.ipc.messages.gateway_control import Route, VersionState

Json = dict[str, Any]  # a JSON object
MODELS_LIMIT: Final = 100
"""Models that are shown."""
_REASON_LENGTH: Final = 300


def overview(name: str, version: str, models: Iterable[Route], more_models: int, host: str) -> Json:
    """`host`: by which the client calls the server."""
    return {
        "server": name,
        "version": version,
        "models": [_model(each, host) for each in models],
        "more_models": more_models,
        "paths": [
            {"method": each.method, "path": each.path, "summary": operation(each.action).summary}
            for each in HTTP_ROUTES
            if operation(each.action).is_served
        ],
    }


def _model(route: Route, host: str) -> Json:
    version = _shown_version(route)
    state, reason = (version.state, version.reason) if version is not None else ("", "")
    metadata = version.metadata if version is not None else None
    return {
        "name": route.name,
        "state": state if route.wanted else "unloaded",
        "reason": reason[:_REASON_LENGTH],
        "request": example_request(route.name, metadata, host) if metadata is not None and route.wanted else "",
    }


def _shown_version(route: Route) -> VersionState | None:
    chosen = [each for each in route.versions if each.version == route.default]
    return next(iter([*chosen, *route.versions]), None)


def media_type(accept: str) -> str:
    """What a client wants, by its Accept header: a page if it names HTML, JSON if it names that, else plain text."""
    for each in accept.lower().split(","):
        kind = each.partition(";")[0].strip()
        if kind in (HTML, "application/xhtml+xml"):
            return HTML
        if kind in (JSON, "application/*"):
            return JSON
    return TEXT


def as_text(shown: Json) -> str:
    lines = [f"{shown['server']} {shown['version']}", ""]
    for each in shown["models"]:
        lines.append(f"{each['name']}: {each['state']}" + (f" ({each['reason']})" if each["reason"] else ""))
        lines += [f"    {each['request']}"] if each["request"] else []
    lines += [_more(shown["more_models"])] if shown["more_models"] else []
    lines.append("")
    lines += [f"{each['method']:<5}{each['path']:<60}{each['summary']}" for each in shown["paths"]]
    return "".join(_printable(each) + "\n" for each in lines)


def _printable(line: str) -> str:
    """Without what moves the cursor of a terminal: a name or a reason may come from a file of somebody's."""
    return "".join(each if each.isprintable() else " " for each in line)


def _more(count: int) -> str:
    return f"and {count} more: GET /v2/models"


def as_page(shown: Json) -> str:
    models = "".join(
        f"<tr><td>{_escaped(each['name'])}<td>{_escaped(each['state'])}<td>{_escaped(each['reason'])}"
        f"<td><code>{_escaped(each['request'])}</code>\n"
        for each in shown["models"]
    )
    more = f"<p>{_more(shown['more_models'])}</p>" if shown["more_models"] else ""
    paths = "".join(
        f"<tr><td>{each['method']}<td><code>{_escaped(each['path'])}</code><td>{_escaped(each['summary'])}\n"
        for each in shown["paths"]
    )
    server, version = _escaped(shown["server"]), _escaped(shown["version"])
    return _PAGE.substitute(server=server, version=version, models=models, more=more, paths=paths)


def _escaped(text: str) -> str:
    return html.escape(_printable(text))


_PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$server</title>
<style>
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .3em .8em .3em 0; border-bottom: 1px solid #ddd }
code { font-size: 13px; overflow-wrap: anywhere }
</style>
<h1>$server <small>$version</small></h1>
<h2>Models</h2>
<table><tr><th>name<th>state<th>why<th>a request
$models</table>
$more
<h2>Paths</h2>
<p>The whole description is at <a href="/openapi.json">/openapi.json</a>.</p>
<table><tr><th>method<th>path<th>what it does
$paths</table>
</html>
"""
)
