"""What the server says of itself: a page for browsers, text for curl, and the description of every path."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter, metadata
from http_api import json_of, make_router, run_with_session
from mmsup.gateway.api.description import openapi, overview
from mmsup.gateway.api.description.operations import is_described
from mmsup.gateway.http.error_status import STATUS
from mmsup.gateway.http.url_routes import HTTP_ROUTES
from mmsup.ipc.messages.gateway_control import Route, VersionState

pytestmark = pytest.mark.usefixtures("loop_factory")
EVIL = "<script>alert('x')</script>\x1b[2J"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "text/html"),
        ("application/json", "application/json"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_each_client_gets_what_it_reads(accept: str, kind: str) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.routes.put(Route("evil", wanted=True, default="1", versions=(state(EVIL),)))
        async with session.get("/", headers={"Accept": accept}) as response:
            text = await response.text()
            assert (response.status, response.content_type, response.headers["Vary"]) == (200, kind, "Accept")
            assert ("Content-Security-Policy" in response.headers) is (kind == "text/html")
            for part in ("9.9", "/v2/models/m/infer", "failed", "/openapi.json"):
                assert part in text
            if kind != "application/json":
                assert "\x1b" not in text
            if kind == "text/html":
                assert "<script" not in text
                assert not re.search(r"(?:src|href)=.(?!/openapi\.json)", text), "it has resources of others"
        async with session.head("/", headers={"Accept": accept}) as response:
            assert (response.status, response.content_type) == (200, kind)

    run_with_session(test)


def state(reason: str) -> VersionState:
    return VersionState("1", "failed", "load_failed", reason, 0.0, None, None)


def test_a_request_to_copy_names_the_host_that_was_asked_unless_it_is_no_host() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        for host, shown in (("box.example:81", "box.example:81"), ("a'b$(c)", "localhost:8000")):
            async with session.get("/", headers={"Accept": "application/json", "Host": host}) as response:
                if response.status == 200:
                    (model,) = (await json_of(response))["models"]
                    assert model["request"].startswith(f"curl {shown}/v2/models/m/infer -d ")
                else:
                    assert host != "box.example:81"

    run_with_session(test, host="0.0.0.0")


def test_of_very_many_models_the_first_are_shown_and_the_others_counted() -> None:
    backend = make_router()
    for number in range(overview.MODELS_LIMIT + 7):
        backend.serve(f"n{number}", metadata())

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get("/", headers={"Accept": "application/json"}) as response:
            shown = await json_of(response)
            assert (len(shown["models"]), shown["more_models"]) == (overview.MODELS_LIMIT, 8)
        async with session.get("/") as response:
            assert "and 8 more: GET /v2/models\n" in await response.text()

    run_with_session(test, backend)


def test_every_path_is_described_with_its_statuses() -> None:
    assert [each.action for each in HTTP_ROUTES if not is_described(each.action)] == []
    document = openapi.description("1.2")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(each.method, each.path) for each in HTTP_ROUTES}
    operations: list[dict[str, Any]] = [each for methods in document["paths"].values() for each in methods.values()]
    ids = [each["operationId"] for each in operations]
    assert len(set(ids)) == len(ids)
    codes = {int(status) for each in operations for status in each["responses"]} - {200}
    sent = {
        status for code, status in STATUS.items() if code not in ("cancelled", "method_not_allowed", "http_version")
    }
    assert codes == sent, "a status that no path has, or the reverse"
    names = set(document["components"]["schemas"])
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == names


def test_the_description_is_served_to_everybody() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get("/openapi.json") as response:
            shown = await json_of(response)
            assert (response.status, shown["openapi"], shown["info"]["version"]) == (200, "3.1.0", "9.9")

    run_with_session(test, host="0.0.0.0")
