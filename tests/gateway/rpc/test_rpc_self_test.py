"""The gateway's own gRPC front is tried before it serves."""

from __future__ import annotations

import asyncio

import pytest

from mmsup.gateway.http2.header_blocks import HeaderBlocks
from mmsup.gateway.rpc import rpc_self_test
from mmsup.gateway.rpc.calls import status
from rpc_session import make_router


def result() -> str:
    async def run() -> str:
        router = make_router()
        try:
            return await rpc_self_test.run_self_test(router)
        finally:
            router.threads.shutdown()

    return asyncio.run(run())


def test_a_front_that_works_passes() -> None:
    assert result() == ""


def test_one_that_cannot_read_headers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeaderBlocks, "decode", lambda _self, _block: [])
    assert "failed" in result()


def test_one_that_answers_wrongly_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(status.STATUS, "unknown_model", status.OK)
    assert "an unknown model ended with" in result()


def test_one_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_self_test, "TEST_LIMIT_S", 0.05)
    monkeypatch.setattr(rpc_self_test, "_call", lambda *_: b"")
    assert "did not end within" in result()
