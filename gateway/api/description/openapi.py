"""The OpenAPI description of the HTTP API, made of the URL routes and the table of operations. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

from mmsup.gateway.api.description.operations import ALWAYS, EMPTY, JSON, OF_BODIES, TEXT, Operation, operation
from mmsup.gateway.api.description.schemas import SCHEMAS, ref
from mmsup.gateway.http.error_status import STATUS
from mmsup.gateway.http.url_routes import HTTP_ROUTES, PARAMETER_PATTERNS, Access, HttpRoute

Json = dict[str, Any]  # a JSON object
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_UNSENT: Final = frozenset({"cancelled"})
"""Codes that no client sees."""


def description(version: str) -> Json:
    """The whole document. `version`: of the server."""
    paths: Json = {}
    for route in HTTP_ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mmsup",
            "version": version,
            "description": "The Open Inference Protocol V2 with Triton's extensions, and more.",
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _operation(route: HttpRoute) -> Json:
    described = operation(route.action)
    made: Json = {
        "operationId": _operation_id(route),
        "summary": described.summary,
        "responses": _responses(route, described),
    }
    if route.access is Access.CONTROL:
        made["description"] = "Answered to clients on the same machine only."
    names = _PARAMETER.findall(route.path)
    if names:
        made["parameters"] = [
            {"name": each, "in": "path", "required": True, "schema": {"type": "string", "pattern": _pattern(each)}}
            for each in names
        ]
    if described.request:
        made["requestBody"] = {"content": {JSON: {"schema": ref(described.request)}}}
    return made


def _pattern(name: str) -> str:
    return f"^{PARAMETER_PATTERNS[name].pattern}$"


def _operation_id(route: HttpRoute) -> str:
    """Its method and path as one word: an action may have several paths."""
    return re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_")


def _responses(route: HttpRoute, described: Operation) -> Json:
    codes = {*ALWAYS, *described.codes}
    if route.method == "POST":
        codes |= set(OF_BODIES)
    if "{" in route.path:
        codes.add("unknown_path")
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes - _UNSENT):
        by_status.setdefault(STATUS[code], []).append(code)
    made: Json = {"200": _success(described)}
    for status, known in sorted(by_status.items()):
        schemas = [ref("Error")]
        if status == STATUS["unavailable"] and described.is_ready_check:
            schemas.append(ref(described.reply))
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        made[str(status)] = {"description": ", ".join(known), "content": {JSON: {"schema": schema}}}
    return made


def _success(described: Operation) -> Json:
    if described.reply == EMPTY:
        return {"description": "Done."}
    content = {each: {"schema": ref(described.reply if each == JSON else "Text")} for each in described.media}
    if described.media == (TEXT,):
        return {"description": "Text.", "content": content}
    return {"description": "As its schema says.", "content": content}
