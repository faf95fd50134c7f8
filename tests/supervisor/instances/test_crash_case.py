"""From a death to its bundle, in a whole brain: who is waited for and how long, and what a slow disk costs."""

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
from mmsup.supervisor.postmortem import collector

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
    """Whoever waits for something looks again at each event."""
    house.controller.state_dir.event_log.subscribe(lambda _: house.controller.change_signal.set())


async def why(house: ControllerHarness, **arguments: Any) -> dict[str, Any]:
    told = await house.controller.handlers.handle("why", {"name": "bert", **arguments}, lambda _: None)
    assert isinstance(told, dict)
    return told


def kill(house: ControllerHarness) -> Child:
    (worker,) = house.keeper.workers()
    worker.process.kill()
    return worker


def test_a_bundle_is_written_as_soon_as_every_gateway_has_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_what_was_told_before_the_exit_stands_in_its_event(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        (worker,) = house.keeper.workers()
        house.gateway().send(LinkClosed(*worker.life, 1, 1, (FLIGHT,)))
        house.gateway().send(BadReply(*worker.life, "x"))  # what follows has been heard after it
        await house.until(lambda: house.events("worker_exit"))
        (event,) = house.events("worker_exit")
        assert (event["in_flight"], event["requests"]) == (1, ["the-one"])

    play(tmp_path, act)


def test_a_gateway_that_does_not_tell_is_not_waited_for_and_the_bundle_says_so(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        kill(house)
        await house.until(lambda: house.events("bundle_written"))
        assert house.events("worker_exit")[0]["in_flight"] is None
        assert "not every gateway has told" in house.events("bundle_written")[0]["text"]
        told = await why(house)
        assert not told["bundle"]["requests"]["is_complete"]
        assert any("A gateway has not told" in each for each in told["sentences"])

    play(tmp_path, act)


def has_come_up(house: ControllerHarness, times: int) -> bool:
    return len(house.events("worker_ready", "bert")) == times


def test_a_disk_that_hangs_holds_up_no_restart_and_why_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "READ_LIMIT_S", 0.05)
    monkeypatch.setattr(collector, "MAX_JOBS", 3)

    async def act(house: ControllerHarness) -> None:
        stuck = threading.Event()
        house.controller._crash_collector._submit(
            stuck.wait
        )  # the thread, as a disk that does not answer would leave it
        for number in range(1, 4):
            kill(house)
            await house.until(functools.partial(has_come_up, house, number + 1))
        await house.until(lambda: house.events("bundle_lost"))
        assert "wait for the disk" in house.events("bundle_lost")[0]["text"]
        with pytest.raises(ServerError) as refused:
            await why(house)
        assert refused.value.code == "unavailable"
        stuck.set()
        await house.until(lambda: house.events("bundle_written"))

    play(tmp_path, act)


def test_a_worker_that_left_as_it_was_told_to_has_no_bundle(tmp_path: Path) -> None:
    async def act(house: ControllerHarness) -> None:
        await house.controller.handlers.handle("unload", {"name": "bert"}, lambda _: None)
        await house.until(lambda: house.events("worker_stopped"))
        told = await why(house)
        assert (told["bundle"], told["deaths"]) == (None, [])
        assert told["sentences"][1] == "The model is stopped now."

    play(tmp_path, act)


def test_questions_that_make_no_sense_are_the_callers_fault(tmp_path: Path) -> None:
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


def test_the_next_brain_knows_the_bundles_of_the_last(tmp_path: Path) -> None:
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
