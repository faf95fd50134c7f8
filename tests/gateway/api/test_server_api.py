"""Endpoints of the server: health, readiness, the list of models, metrics."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import INFER, X, json_of, run_with_session
from mmsup.ipc.errors import ServerError, WorkerError

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/health/live", {"live": True}),
        ("/livez", {"live": True}),
        ("/healthz", {"live": True}),
        ("/v2/health/ready", {"ready": True, "live": True}),
        ("/readyz", {"ready": True, "live": True}),
        ("/v2/models", {"models": ["m"]}),
        ("/v2/models/m/ready", {"name": "m", "ready": True, "state": "ready"}),
    ],
)
def test_health_and_lists_answer_json_and_head_the_same_without_a_body(path: str, told: dict[str, Any]) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get(path) as response:
            assert (response.status, await json_of(response)) == (200, told)
            assert response.headers["Server"] == "mmsup"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            length = response.headers["Content-Length"]
        async with session.head(path) as response:
            assert (response.status, await response.read(), response.headers["Content-Length"]) == (200, b"", length)

    run_with_session(test)


def test_a_server_that_is_not_ready_says_why() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.status.ready, backend.status.reason = False, "loading m"
        async with session.get("/v2/health/ready") as response:
            assert response.status == 503
            assert await json_of(response) == {"ready": False, "live": True, "error": "loading m"}

    run_with_session(test)


def test_each_request_is_counted_once_and_shown_on_the_metrics_page() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        for inputs in ([X], [X], []):
            async with session.post(INFER, json={"inputs": inputs}) as response:
                await response.read()
        backend.refusal = WorkerError("worker_crashed", "x")
        async with session.post(INFER, json={"inputs": [X]}) as response:
            await response.read()
        async with session.get("/metrics") as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'nv_inference_request_success{model="m",version="1"} 2.0' in text
        assert 'mmsup_requests_refused_total{code="bad_request",model="m"} 1.0' in text
        assert 'nv_inference_request_failure{model="m",reason="BACKEND",version=""} 1.0' in text
        async with session.get("/v2/models/m/stats") as response:
            (row,) = (await json_of(response))["model_stats"]
            assert row["inference_stats"]["success"]["count"] == 2

    run_with_session(test)


def test_metrics_are_served_while_the_controller_is_down() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["status"] = ServerError("unavailable", "x")
        async with session.get("/metrics") as response:
            assert response.status == 200

    run_with_session(test)
