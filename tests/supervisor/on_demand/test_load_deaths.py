"""A worker that ends while its model is loaded from sleep: there is one more try before those who wait are told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import Child, ControllerHarness, Script, add_model, fail_to_load
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.gateway_control import VersionState
from mmsup.ipc.messages.keeper_control import Spawn
from mmsup.supervisor.instances.lifecycle_events import OutOfMemory

pytestmark = pytest.mark.slow
Play = Callable[[ControllerHarness], Awaitable[None]]


def run_in_harness(home: Path, play: Play, yaml: str = "") -> None:
    add_model(home, "m", yaml=yaml)

    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, (), control_mode="on-demand") as harness:
            await harness.until(lambda: harness.controller.models.waker.is_open)
            await play(harness)

    asyncio.run(run())


def version(harness: ControllerHarness) -> VersionState:
    model = harness.controller.models.model_set.model("m")
    assert model is not None
    (found,) = model.route().versions
    return found


def loads(harness: ControllerHarness) -> int:
    return sum(each.token.startswith("worker") for each in harness.keeper.sent_of(Spawn))


def die(child: Child) -> None:
    child.process.kill()


def once(harness: ControllerHarness, first: Script) -> Script:
    """What the first worker does; the others serve."""

    def script(child: Child) -> None:
        harness.keeper.script = Child.serve
        first(child)

    return script


def run_out_of_memory(harness: ControllerHarness) -> None:
    """The kernel tells of its control group before it tells of the process."""
    (instance,) = harness.controller.models.model_set.instances()
    instance.apply(OutOfMemory("killed by the kernel for memory"))


@pytest.mark.parametrize("by_memory", [False, True])
def test_who_waits_is_served_by_the_second_try(tmp_path: Path, by_memory: bool) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = once(harness, (lambda _: run_out_of_memory(harness)) if by_memory else die)
        load = asyncio.create_task(harness.controller.models.waker.wake_for_request("m"))
        await harness.until(lambda: harness.events("worker_exit"))
        meanwhile = version(harness)
        assert (meanwhile.code, meanwhile.wake_wait_s) == ("model_restarting", 300.0), "requests go on waiting"
        await load
        assert (harness.state("m"), loads(harness)) == ("ready", 2)

    run_in_harness(tmp_path, play)


@pytest.mark.parametrize(
    ("yaml", "by_memory", "code", "retryable"),
    [
        ("", False, "load_failed", True),
        ("", True, "does_not_fit", True),
        ("memory: 1GiB\n", True, "does_not_fit", False),
    ],
)
def test_the_second_death_is_told_to_all_and_another_request_is_worth_a_try_unless_its_own_cap_ended_it(
    tmp_path: Path, yaml: str, by_memory: bool, code: str, retryable: bool
) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = (lambda _: run_out_of_memory(harness)) if by_memory else die
        with pytest.raises(MmsupError, match="failed to load 'm': ") as caught:
            await harness.controller.models.waker.wake_for_request("m")
        assert caught.value.code == code
        assert loads(harness) == 2
        found = version(harness)
        assert (found.code, found.retryable) == ("model_failed", retryable)

    run_in_harness(tmp_path, play, yaml)


def test_a_load_that_the_model_itself_fails_is_told_at_once(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = once(harness, fail_to_load)
        with pytest.raises(MmsupError, match="the artefact is broken"):
            await harness.controller.models.waker.wake_for_request("m")
        assert (version(harness).code, version(harness).retryable) == ("model_failed", False)

    run_in_harness(tmp_path, play)


def test_a_load_by_hand_is_told_its_first_death(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.controller.models.loader.unload("m")
        harness.keeper.script = once(harness, die)
        with pytest.raises(MmsupError, match="SIGKILL"):
            await harness.controller.models.loader.load("m")

    run_in_harness(tmp_path, play)
