"""Log and trace settings over HTTP: the controller holds them, every answer has all of them."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import json_of, run_with_session
from mmsup.ipc.errors import CallerError

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize(
    ("path", "command", "name"),
    [
        ("/v2/logging", "log_settings", {}),
        ("/v2/trace/setting", "trace_settings", {}),
        ("/v2/models/m/trace/setting", "trace_settings", {"name": "m"}),
    ],
)
def test_settings_are_shown_changed_and_refused_by_the_controller(
    path: str, command: str, name: dict[str, str]
) -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers[command] = {"some": "settings"}
        async with session.get(path) as response:
            assert (response.status, await json_of(response)) == (200, {"some": "settings"})
        async with session.post(path, json={"a": None, "b": [1]}) as response:
            assert (response.status, await json_of(response)) == (200, {"some": "settings"})
        async with session.post(path) as response:
            assert response.status == 200
        changes = {**name, "settings": {"a": None, "b": [1]}}
        assert backend.asked == [(command, name), (command, changes), (command, {**name, "settings": {}})]
        backend.answers[command] = CallerError("bad_request", "'a' must be true or false")
        async with session.post(path, json={"a": 1}) as response:
            assert (response.status, (await json_of(response))["error"]) == (400, "'a' must be true or false")
        async with session.post(path, data=b"[1]") as response:
            assert response.status == 400

    run_with_session(test)


def test_other_machines_may_see_settings_and_change_none() -> None:
    async def test(backend: FakeRouter, session: ClientSession) -> None:
        backend.answers |= {"log_settings": {}, "trace_settings": {}}
        for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/m/trace/setting"):
            async with session.get(path) as response:
                assert response.status == 200
            async with session.post(path, json={}) as response:
                assert (response.status, (await json_of(response))["code"]) == (403, "forbidden")
        assert [arguments.get("settings") for _, arguments in backend.asked] == [None] * 3

    run_with_session(test, host="0.0.0.0")
