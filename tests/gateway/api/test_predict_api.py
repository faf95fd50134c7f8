"""KServe's first protocol over HTTP."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter, metadata
from http_api import json_of, make_router, run_with_session

pytestmark = pytest.mark.usefixtures("loop_factory")
PATH = "/v1/models/rows:predict"


def rows_router() -> FakeRouter:
    backend = make_router()
    backend.serve("rows", metadata(("x", "FP32", (-1,)), max_batch_size=1 << 20))
    return backend


def test_predictions_are_the_rows_of_the_output() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        rows = [[1.0, 2.0], [3.0, 4.0]]
        async with session.post(PATH, json={"instances": rows, "parameters": {"top_k": 3}}) as response:
            assert (response.status, response.content_type) == (200, "application/json")
            assert await response.json() == {"predictions": rows}
        assert backend.calls[-1].parameters == {"top_k": 3}
        async with session.post("/v1/models/rows%3Apredict", json={"instances": rows}) as response:
            assert response.status == 200
        many = [[float(each)] * 8 for each in range(5000)]
        async with session.post(PATH, json={"instances": many}) as response:
            assert (await response.json())["predictions"] == many
        async with session.get("/v2/models/rows/stats") as response:
            (stats,) = (await response.json())["model_stats"]
            assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (5004, 3)

    run_with_session(test, rows_router())


def test_what_is_wrong_is_said_as_at_v2() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        for path, sent, status, code in (
            (PATH, b'{"instances": [1', 400, "bad_request"),
            (PATH, b"{}", 400, "bad_request"),
            (PATH, b"", 400, "bad_request"),
            ("/v1/models/none:predict", b'{"instances": [1]}', 404, "unknown_model"),
            ("/v1/models/rows:explain", b"{}", 404, "unknown_path"),
            ("/v1/models/rows", b"{}", 405, "method_not_allowed"),
            ("/v1/models", b"{}", 404, "unknown_path"),
        ):
            async with session.post(path, data=sent) as response:
                assert (path, response.status, (await json_of(response))["code"]) == (path, status, code)
        async with session.get(PATH) as response:
            assert response.status == 405
        async with session.get("/v2/models/rows:predict") as response:
            assert response.status == 404

    run_with_session(test, rows_router())


def test_a_model_says_whether_it_is_ready() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get("/v1/models/rows") as response:
            assert (response.status, await response.json()) == (200, {"name": "rows", "ready": True})
        async with session.get("/v1/models/none") as response:
            assert response.status == 404

    run_with_session(test, rows_router())
