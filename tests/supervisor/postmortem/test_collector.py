"""Crash reports in a whole controller: how long gateways are waited for, and what a slow disk costs."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness
from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.messages.gateway_control import BadReply, CommandReply, CommandRequest, InFlight, LinkClosed
from mmsup.supervisor.postmortem import collector, disk_thread

pytestmark = pytest.mark.slow
FLIGHT = InFlight("the-one", begun=True, abandoned=False, age_s=0.5)


def play(tmp_path: Path, act: Callable[[ControllerHarness], Awaitable[None]], **options: Any) -> None:  # of House
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert",), **options) as house:
            watch(house)
            await house.until(lambda: house.state("bert") == "ready")
            await act(house)

    asyncio.run(run())


def watch(house: ControllerHarness) -> None:
    """Check the condition of each wait again at every event."""
    house.controller.state_dir.event_log.subscribe(lambda _: house.controller.change_signal.set())


async def why(house: ControllerHarness, **arguments: Any) -> dict[str, Any]:
    told = await house.controller.handlers.handle("why", {"name": "bert", **arguments}, lambda _: None)
    assert isinstance(told, dict)
    return told


def kill(house: ControllerHarness) -> Child:
    (worker,) = house.keeper.workers()
    worker.process.kill()
    return worker


def test_a_report_is_written_once_every_gateway_has_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "GATEWAY_WAIT_S", 3600.0)

    async def act(house: ControllerHarness) -> None:
        worker = kill(house)
        await house.until(lambda: house.events("worker_exit"))
        assert not house.events("bundle_written")
        house.gateway().send(LinkClosed(*worker.life, 1, 1, (FLIGHT,)))
        await house.until(lambda: house.events("bundle_written"))
        (event,) = house.events("bundle_written")
        assert (event["in_flight"], event["begun"], event["requests"]) == (1, 1, ["the-one"])
        bundle = (await why(house))["bundle"]
        assert bundle["requests"]["is_complete"]
        assert bundle["requests"]["named"][0]["id"] == "the-one"

    play(tmp_path, act)


def test_what_was_reported_before_the_exit_is_in_its_event(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        (worker,) = house.keeper.workers()
        house.gateway().send(LinkClosed(*worker.life, 1, 1, (FLIGHT,)))
        house.gateway().send(BadReply(*worker.life, "x"))  # received after it
        await house.until(lambda: house.events("worker_exit"))
        (event,) = house.events("worker_exit")
        assert (event["in_flight"], event["requests"]) == (1, ["the-one"])

    play(tmp_path, act)


def test_a_gateway_that_does_not_report_is_not_waited_for_and_the_report_says_so(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        kill(house)
        await house.until(lambda: house.events("bundle_written"))
        assert house.events("worker_exit")[0]["in_flight"] is None
        assert "not every gateway has reported" in house.events("bundle_written")[0]["text"]
        told = await why(house)
        assert not told["bundle"]["requests"]["is_complete"]
        assert any("A gateway has not reported" in each for each in told["sentences"])

    play(tmp_path, act)


def has_become_ready(house: ControllerHarness, times: int) -> bool:
    return len(house.events("worker_ready", "bert")) == times


def test_a_disk_that_hangs_delays_no_restart_and_why_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "READ_LIMIT_S", 0.05)
    monkeypatch.setattr(disk_thread, "MAX_JOBS", 3)

    async def act(house: ControllerHarness) -> None:
        stuck = threading.Event()
        # As a disk that does not answer would block the thread.
        house.controller._crash_collector._thread.submit(stuck.wait)
        for number in range(1, 4):
            kill(house)
            await house.until(functools.partial(has_become_ready, house, number + 1))
        await house.until(lambda: house.events("bundle_lost"))
        assert "wait for the disk" in house.events("bundle_lost")[0]["text"]
        with pytest.raises(ServerError) as refused:
            await why(house)
        assert refused.value.code == "unavailable"
        stuck.set()
        await house.until(lambda: house.events("bundle_written"))

    play(tmp_path, act)


def test_a_worker_that_exited_as_requested_has_no_report(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        await house.controller.handlers.handle("unload", {"name": "bert"}, lambda _: None)
        await house.until(lambda: house.events("worker_stopped"))
        told = await why(house)
        assert (told["bundle"], told["deaths"]) == (None, [])
        assert told["sentences"][1] == "The model is stopped now."

    play(tmp_path, act)


def test_invalid_arguments_of_why_are_the_callers_fault(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        with pytest.raises(MmsupError) as unknown:
            await why(house, name="nobody")
        assert unknown.value.code == "unknown_model"
        kill(house)
        await house.until(lambda: house.events("bundle_written"))
        for death in (0, 2):
            with pytest.raises(CallerError, match="1 deaths are on record"):
                await why(house, death=death)
        with pytest.raises(CallerError, match="must be a number"):
            await why(house, death="last")

    play(tmp_path, act)


def test_a_gateways_client_cannot_ask_why(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        gateway = house.gateway()
        gateway.send(CommandRequest(1, "why", {"name": "bert"}))
        await house.until(lambda: gateway.received_of(CommandReply))
        assert gateway.received_of(CommandReply)[0].code == "forbidden"

    play(tmp_path, act)


def test_the_next_controller_knows_the_reports_of_the_last(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        kill(house)
        await house.until(lambda: house.events("bundle_written") and house.state("bert") == "ready")
        await house.kill_controller()
        await house.start_controller()
        watch(house)
        await house.until(lambda: house.state("bert") == "ready")
        kill(house)
        await house.until(lambda: len(house.events("bundle_written")) == 2)
        told = await why(house)
        assert [each["number"] for each in told["deaths"]] == [2, 1]
        assert len(told["bundle"]["artefact"]["sha256"]) == 64

    play(tmp_path, act)
