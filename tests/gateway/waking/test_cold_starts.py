"""Requests that wait for loads from sleep: one question a model, bounds by number and bytes, and no place is lost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from mmsup.gateway.waking.cold_starts import ColdStarts
from mmsup.gateway.waking.request_wait import RequestWait
from mmsup.ipc.errors import ServerError, make_error


class Body:
    def __init__(self, size: int) -> None:
        self.held_bytes = size
        self.is_cold = False

    async def read_options(self, wait: RequestWait) -> None:
        wait.priority = 0

    def on_cold(self) -> None:
        self.is_cold = True


class Controller:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: list[asyncio.Future[Any]] = []

    async def call(self, command: str, arguments: dict[str, Any]) -> Any:
        assert command == "wake_for_request"
        self.asked.append(arguments["name"])
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer


async def turns() -> None:
    """A few turns of the event loop: nothing here waits for more."""
    for _ in range(5):
        await asyncio.sleep(0)


def waiting(size: int = 0) -> RequestWait:
    return RequestWait(0, body=Body(size))


def test_requests_of_one_model_ask_once_and_all_get_the_same_reason() -> None:
    async def run() -> None:
        cold, controller, notified = ColdStarts(9, 1000), Controller(), list[int]()
        cold.call, cold.notify = controller.call, lambda: notified.append(1)
        first, second, other = waiting(), waiting(), waiting()
        cold.ask("m", first)
        cold.ask("m", second)
        cold.ask("n", other)
        await asyncio.sleep(0)
        assert controller.asked == ["m", "n"]
        controller.answers[0].set_exception(make_error("does_not_fit", "no room"))
        await turns()
        assert notified
        assert first.start is second.start
        assert first.start is not None
        assert first.start.error is not None
        assert first.start.error.code == "does_not_fit"
        assert first.has_asked()
        late = waiting()
        cold.ask("m", late)
        await asyncio.sleep(0)
        assert controller.asked == ["m", "n", "m"]
        await cold.close()

    asyncio.run(run())


def test_a_controller_that_ends_takes_the_question_along_and_the_next_one_can_be_asked() -> None:
    async def run() -> None:
        cold, controller, notified = ColdStarts(9, 1000), Controller(), list[int]()
        cold.call, cold.notify = controller.call, lambda: notified.append(1)
        wait = waiting()
        cold.ask("m", wait)
        await asyncio.sleep(0)
        controller.answers[0].set_exception(ServerError("unavailable", "the supervisor was restarted"))
        await turns()
        assert not wait.has_asked()
        assert not notified, "what the next controller sends wakes the requests"
        cold.ask("m", wait)
        await asyncio.sleep(0)
        assert controller.asked == ["m", "m"]
        await cold.close()

    asyncio.run(run())


def test_only_the_first_to_ask_counts_a_start() -> None:
    async def run() -> None:
        cold, controller, started = ColdStarts(9, 1000), Controller(), list[str]()
        cold.call, cold.on_started = controller.call, started.append
        for name, is_first in (("m", True), ("n", False)):
            wait = waiting()
            cold.ask(name, wait)
            await asyncio.sleep(0)
            controller.answers[-1].set_result({"started": is_first})
            await turns()
        assert started == ["m"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sizes", "size", "key"), [([0, 0, 0], 0, "max_cold_requests"), ([600], 500, "max_cold_bytes"), ([5000], 0, "")]
)
def test_past_a_bound_the_error_names_its_key(sizes: list[int], size: int, key: str) -> None:
    cold = ColdStarts(3, 1000)
    for number, each in enumerate(sizes):
        cold.enter(f"m{number}", waiting(each), 1.0)  # one alone always fits
    if not key:
        assert cold.admission.requests_by_model == {"m0": 1}
        return
    refused = waiting(size)
    with pytest.raises(ServerError, match=key) as caught:
        cold.enter("n", refused, 1.0)
    assert (caught.value.code, caught.value.retry_after_s) == ("queue_full", 5.0)
    assert isinstance(refused.body, Body)
    assert not refused.body.is_cold
    assert "n" not in cold.admission.requests_by_model


@pytest.mark.parametrize(("size", "places"), [(0, 4), (150, 3)])
def test_requests_of_one_model_leave_places_for_those_of_another(size: int, places: int) -> None:
    cold = ColdStarts(8, 1000)
    for _ in range(places):
        cold.enter("hangs", waiting(size), 1.0)
    with pytest.raises(ServerError, match=f"{places} of them" if not size else f"{places * size} of them"):
        cold.enter("hangs", waiting(size), 1.0)
    cold.enter("m", waiting(size), 1.0)


@pytest.mark.parametrize("seed", range(100))
def test_places_are_given_back_by_whatever_way_requests_leave(seed: int) -> None:
    rng = random.Random(seed)
    cold, waited = ColdStarts(8, 1000), list[str]()
    cold.on_waited = lambda name, _: waited.append(name)
    inside: list[tuple[str, RequestWait, int]] = []
    for _ in range(200):
        if inside and rng.random() < 0.5:
            name, wait, _ = inside.pop(rng.randrange(len(inside)))
            cold.leave(name, wait)
        else:
            name, size = rng.choice("abc"), rng.choice([0, 100, 400, 2000])
            wait = waiting(size)
            held = sum(each for _, _, each in inside)
            own = [each for other, _, each in inside if other == name]
            is_full = len(inside) + len(own) >= 8 or (size > 0 and held > 0 and held + sum(own) + size > 1000)
            try:
                cold.enter(name, wait, 1.0)
                assert not is_full
                inside.append((name, wait, size))
            except ServerError:
                assert is_full
        counted = {name: sum(each[0] == name for each in inside) for name in "abc"}
        assert cold.admission.requests_by_model == {name: count for name, count in counted.items() if count}
    for name, wait, _ in inside:
        cold.leave(name, wait)
    assert cold.admission.requests_by_model == {}
    cold.enter("a", waiting(1000), 1.0)
