"""Endpoints of the model repository: executed by the controller, bodies checked."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import json_of, run_with_session
from mmsup.ipc.errors import CallerError, ModelError
from mmsup.ipc.messages.gateway_control import Route

pytestmark = pytest.mark.usefixtures("loop_factory")


def test_index_load_and_unload_are_executed_by_the_controller() -> None:
    rows = [{"name": "m", "version": "1", "state": "READY", "reason": ""}]

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers |= {"index": rows, "load": {"name": "m"}, "unload": {}}
        async with session.post("/v2/repository/index", json={"ready": True}) as response:
            assert await response.json() == rows
        async with session.post("/v2/repository/models/m/load") as response:
            assert (response.status, await response.read()) == (200, b"")
        body = {"parameters": {"unload_dependents": True}}
        async with session.post("/v2/repository/models/m/unload", json=body) as response:
            assert (response.status, await response.read()) == (200, b"")
        assert backend.asked == [
            ("index", {"ready": True}),
            ("load", {"name": "m"}),
            ("unload", {"name": "m", **body}),
        ]

    run_with_session(test)


def test_sleep_and_wake_are_executed_by_the_controller_and_answered_with_its_result() -> None:
    rows = {"sleep": {"name": "m", "state": "asleep"}, "wake": {"name": "m", "state": "ready"}}

    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers |= rows
        for command, row in rows.items():
            async with session.post(f"/mmsup/v1/models/m/{command}") as response:
                assert (response.status, await response.json()) == (200, row)
            async with session.post(f"/mmsup/v1/models/m/{command}", json={"force": True}) as response:
                assert response.status == 400
        assert backend.asked == [("sleep", {"name": "m"}), ("wake", {"name": "m"})]
        backend.answers["sleep"] = CallerError("conflict", "'m' is pinned", model="m")
        async with session.post("/mmsup/v1/models/m/sleep") as response:
            assert (response.status, (await json_of(response))["error"]) == (409, "'m' is pinned")

    run_with_session(test)


def test_a_wake_is_answered_after_the_time_that_a_request_would_wait() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        (version,) = backend.routes.model("m").versions
        backend.routes.put(Route("m", wanted=True, default="1", versions=(replace(version, wake_wait_s=0.02),)))
        backend.answers["wake"] = asyncio.get_running_loop().create_future()
        async with session.post("/mmsup/v1/models/m/wake") as response:
            found = await json_of(response)
        assert (response.status, found["code"], response.headers["Retry-After"]) == (503, "model_loading", "1")
        assert "0.02 s" in found["error"]

    run_with_session(test)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b'{"ready":1}', 400),
        (b"", 200),
        (b"{}", 200),
    ],
)
def test_the_body_of_a_control_request_is_checked(body: bytes, status: int) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["index"] = []
        async with session.post("/v2/repository/index", data=body) as response:
            assert response.status == status

    run_with_session(test)


def test_files_in_a_load_request_are_refused() -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        body = {"parameters": {"config": "{}", "file:1/model.onnx": "AAAA"}}
        async with session.post("/v2/repository/models/m/load", json=body) as response:
            assert response.status == 403
            assert (await json_of(response))["error"].startswith("failed to load 'm'")

    run_with_session(test)


def test_a_refused_load_has_the_text_of_the_controller() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers["load"] = ModelError("load_failed", "failed to load 'm': no such op", model="m")
        async with session.post("/v2/repository/models/m/load") as response:
            assert response.status == 500
            assert (await json_of(response))["error"] == "failed to load 'm': no such op"

    run_with_session(test)
