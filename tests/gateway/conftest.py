"""Fixtures of the gateway's tests."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from http_api import LOOP


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> None:
    """Run the test on both event loops: they differ in how long a transport holds the bytes of a write."""
    LOOP[:] = [request.param]
