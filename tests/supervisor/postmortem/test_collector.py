"""Crash reports in a whole controller: how long gateways are waited for, and what a slow disk costs."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller_double import Child, ControllerHarness
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.messages.gateway_control import BadReply, CommandReply, CommandRequest, InFlight, LinkClosed
from mmsup.supervisor.postmortem import collector, disk_thread

pytestmark = pytest.mark.slow
FLIGHT = InFlight("the-one", begun=True, abandoned=False, age_s=0.5)


def play(
    tmp_path: Path, scenario: Callable[[ControllerHarness], Awaitable[None]], **options: Any
) -> None:  # of ControllerHarness
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",), **options) as harness:
            watch(harness)
            await harness.until(lambda: harness.state("bert") == "ready")
            await scenario(harness)

    asyncio.run(run())


def watch(harness: ControllerHarness) -> None:
    """Check the condition of each wait again at every event."""
    harness.controller.context.state_dir.event_log.subscribe(lambda _: harness.controller.context.change_signal.set())


async def why(harness: ControllerHarness, **arguments: Any) -> dict[str, Any]:
    result = await harness.controller.api.handlers.handle("why", {"name": "bert", **arguments}, lambda _: None)
    assert isinstance(result, dict)
    return result


def kill(harness: ControllerHarness) -> Child:
    (worker,) = harness.keeper.workers()
    worker.process.kill()
    return worker


def test_a_report_is_written_once_every_gateway_has_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "GATEWAY_WAIT_S", 3600.0)

    async def scenario(harness: ControllerHarness) -> None:
        worker = kill(harness)
        await harness.until(lambda: harness.events("worker_exit"))
        assert not harness.events("bundle_written")
        harness.gateway().send(LinkClosed(*worker.life, 1, 1, (FLIGHT,)))
        await harness.until(lambda: harness.events("bundle_written"))
        (event,) = harness.events("bundle_written")
        assert (event["in_flight"], event["begun"], event["requests"]) == (1, 1, ["the-one"])
        report = (await why(harness))["bundle"]
        assert report["requests"]["is_complete"]
        assert report["requests"]["named"][0]["id"] == "the-one"

    play(tmp_path, scenario)


def test_what_was_reported_before_the_exit_is_in_its_event(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        (worker,) = harness.keeper.workers()
        harness.gateway().send(LinkClosed(*worker.life, 1, 1, (FLIGHT,)))
        harness.gateway().send(BadReply(*worker.life, "x"))  # received after it
        await harness.until(lambda: harness.events("worker_exit"))
        (event,) = harness.events("worker_exit")
        assert (event["in_flight"], event["requests"]) == (1, ["the-one"])

    play(tmp_path, scenario)


def test_a_gateway_that_does_not_report_is_not_waited_for_and_the_report_says_so(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        kill(harness)
        await harness.until(lambda: harness.events("bundle_written"))
        assert harness.events("worker_exit")[0]["in_flight"] is None
        assert "not every gateway has reported" in harness.events("bundle_written")[0]["text"]
        result = await why(harness)
        assert not result["bundle"]["requests"]["is_complete"]
        assert any("A gateway has not reported" in each for each in result["sentences"])

    play(tmp_path, scenario)


def has_become_ready(harness: ControllerHarness, times: int) -> bool:
    return len(harness.events("worker_ready", "bert")) == times


def test_a_disk_that_hangs_delays_no_restart_and_why_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "READ_LIMIT_S", 0.05)
    monkeypatch.setattr(disk_thread, "MAX_JOBS", 3)

    async def scenario(harness: ControllerHarness) -> None:
        stuck = threading.Event()
        # As a disk that does not answer would block the thread.
        harness.controller.gateways.crash_collector._thread.submit(stuck.wait)
        for number in range(1, 4):
            kill(harness)
            await harness.until(functools.partial(has_become_ready, harness, number + 1))
        await harness.until(lambda: harness.events("bundle_lost"))
        assert "wait for the disk" in harness.events("bundle_lost")[0]["text"]
        with pytest.raises(ServerError) as refused:
            await why(harness)
        assert refused.value.code == "unavailable"
        stuck.set()
        await harness.until(lambda: harness.events("bundle_written"))

    play(tmp_path, scenario)


def test_a_worker_that_exited_as_requested_has_no_report(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        await harness.controller.api.handlers.handle("unload", {"name": "bert"}, lambda _: None)
        await harness.until(lambda: harness.events("worker_stopped"))
        result = await why(harness)
        assert (result["bundle"], result["deaths"]) == (None, [])
        assert result["sentences"][1] == "The model is stopped now."

    play(tmp_path, scenario)


def test_invalid_arguments_of_why_are_the_callers_fault(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        with pytest.raises(MmsupError) as unknown:
            await why(harness, name="nobody")
        assert unknown.value.code == "unknown_model"
        kill(harness)
        await harness.until(lambda: harness.events("bundle_written"))
        for death in (0, 2):
            with pytest.raises(CallerError, match="1 deaths are on record"):
                await why(harness, death=death)
        with pytest.raises(CallerError, match="must be a number"):
            await why(harness, death="last")

    play(tmp_path, scenario)


def test_a_gateways_client_cannot_ask_why(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        gateway = harness.gateway()
        gateway.send(CommandRequest(1, "why", {"name": "bert"}))
        await harness.until(lambda: gateway.received_of(CommandReply))
        assert gateway.received_of(CommandReply)[0].code == "forbidden"

    play(tmp_path, scenario)


def test_the_next_controller_knows_the_reports_of_the_last(tmp_path: Path) -> None:
    async def scenario(harness: ControllerHarness) -> None:
        kill(harness)
        await harness.until(lambda: harness.events("bundle_written") and harness.state("bert") == "ready")
        await harness.kill_controller()
        await harness.start_controller()
        watch(harness)
        await harness.until(lambda: harness.state("bert") == "ready")
        kill(harness)
        await harness.until(lambda: len(harness.events("bundle_written")) == 2)
        result = await why(harness)
        assert [each["number"] for each in result["deaths"]] == [2, 1]
        assert len(result["bundle"]["artefact"]["sha256"]) == 64

    play(tmp_path, scenario)
