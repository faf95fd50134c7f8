"""Endpoints of one model: metadata, configuration, statistics."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from fake_router import FakeRouter
from http_api import json_of, run_with_session

pytestmark = pytest.mark.usefixtures("loop_factory")


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/models/m", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/stats"]
)
def test_metadata_and_configuration_are_json_objects(path: str) -> None:
    async def test(_: FakeRouter, session: ClientSession) -> None:
        async with session.get(path) as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            assert await json_of(response)

    run_with_session(test)
