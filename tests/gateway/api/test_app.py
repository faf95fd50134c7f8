"""The HTTP application: unknown paths, methods, access, and bugs."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter, Tensor, metadata
from http_api import INFER, X, json_of, make_router, run_with_session

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "unknown_path"),
        ("GET", "/v2/", 404, "unknown_path"),
        ("GET", "/v2/models/zz", 404, "unknown_model"),
        ("POST", "/v2/models/zz/infer", 404, "unknown_model"),
        ("GET", "/v2/models/m/versions/9", 404, "unknown_version"),
        ("GET", "/v2/models/m/versions/stable/ready", 404, "bad_version"),
        ("POST", "/v2/systemsharedmemory/region/r/register", 400, "bad_request"),
        ("GET", "/v2/systemsharedmemory/region/r/status", 404, "unknown_region"),
        ("POST", "/v2/models/absent/generate", 404, "unknown_model"),
        ("POST", "/v2/models/m/versions/9/generate_stream", 404, "unknown_version"),
        ("POST", "/v2/repository/other/index", 501, "not_implemented"),
    ],
)
def test_unknown_paths_and_models_are_json_errors(method: str, path: str, status: int, code: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.request(method, path) as response:
            told = await json_of(response)
            assert (response.status, told["code"]) == (status, code)
            assert told["error"]

    run_with_session(test)


def test_another_method_is_405_with_an_allow_header() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.delete(INFER) as response:
            assert (response.status, response.headers["Allow"]) == (405, "OPTIONS, POST")
            assert (await json_of(response))["code"] == "method_not_allowed"
        async with session.get("/v2/repository/models/m/unload") as response:
            assert response.status == 405
            assert "curl -X POST" in (await json_of(response))["error"]
        async with session.options("/v2") as response:
            assert (response.status, response.headers["Allow"]) == (200, "GET, HEAD, OPTIONS")

    run_with_session(test)


def test_unregistering_unknown_shared_memory_succeeds() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        for path in ("systemsharedmemory", "cudasharedmemory", "systemsharedmemory/region/r"):
            async with session.post(f"/v2/{path}/unregister") as response:
                assert (response.status, await response.read()) == (200, b"")
        async with session.get("/v2/systemsharedmemory/status") as response:
            assert await response.json() == []

    run_with_session(test)


def test_control_is_refused_on_a_listener_that_others_can_reach() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        ours = ("/mmsup/v1/models/m/sleep", "/mmsup/v1/models/m/wake")
        for path in ("/v2/repository/models/m/load", "/v2/repository/models/m/unload", "/v2/logging", *ours):
            async with session.post(path) as response:
                assert (response.status, (await json_of(response))["code"]) == (403, "forbidden")
        async with session.get("/v2/health/ready") as response:
            assert response.status == 200
        assert backend.asked == []

    run_with_session(test, host="0.0.0.0")


def test_a_bug_is_a_500_without_details_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        raise ZeroDivisionError("secret")

    backend = make_router()
    backend.serve("broken", metadata(("X", "FP32", (-1,))), broken)

    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.post("/v2/models/broken/infer", json={"inputs": [X]}) as response:
            assert response.status == 500
            assert "secret" not in await response.text()
        async with session.post(INFER, json={"inputs": [X]}) as response:
            assert response.status == 200

    run_with_session(test, backend)
    assert "secret" in caplog.text


@pytest.mark.parametrize("front", ["fast", "plain"])
def test_a_web_page_can_neither_infer_under_its_own_name_nor_unload(front: str) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        evil = {"Host": "evil.example:8000"}
        for path in (INFER, "/v2/repository/index"):
            async with session.post(path, json={"inputs": [X]}, headers=evil) as response:
                told = await json_of(response)
                assert (response.status, told["code"]) == (403, "forbidden")
                assert "--allow-host evil.example" in told["error"]
        for path in ("/v2/health/ready", "/metrics"):
            async with session.get(path, headers=evil) as response:
                assert response.status == 403
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            for path in ("/v2/repository/models/m/unload", "/v2/repository/models/m/load", "/v2/logging"):
                async with session.post(path, data="{}", headers=headers) as response:
                    assert (response.status, (await json_of(response))["code"]) == (403, "forbidden")
        assert backend.asked == []
        backend.answers["unload"] = None
        async with session.post("/v2/repository/models/m/unload", data={"": "{}"}) as response:
            assert (await response.read(), response.status)[1] != 403
        async with session.post("/v2/repository/models/m/unload", data=b"{}") as response:  # as curl -d
            assert response.status == 200

    run_with_session(test, front=front)
