"""Models that are asleep, over changes of their files, new controllers and new servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from controller_double import Child, ControllerHarness, add_model
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.worker_control import ConfigureWorker, LoadFailed
from mmsup.supervisor.capacity.footprint import Footprint, FootprintKey
from mmsup.supervisor.capacity.footprint_store import FootprintStore
from mmsup.supervisor.models.load_queue import SLOW_S
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_set import start_bound_s
from mmsup.supervisor.models.sleep_state import SleepReason
from mmsup.supervisor.processes.idle_start import AWAITED_S, SPARE_S
from mmsup.supervisor.state import atomic_file

pytestmark = pytest.mark.slow
Play = Callable[[ControllerHarness], Awaitable[None]]


def run_in_harness(home: Path, *plays: Play, mode: str = "on-demand", **options: int) -> None:
    """Each play with a server of its own, on the same directories; all but the last one end without an orderly stop."""

    async def run() -> None:
        for play in plays:
            async with asyncio.timeout(60), ControllerHarness(home, (), control_mode=mode, **options) as harness:
                await harness.until(lambda: harness.controller.models.waker.is_open)
                await play(harness)

    asyncio.run(run())


def model(harness: ControllerHarness, name: str) -> Model:
    found = harness.controller.models.model_set.model(name)
    assert found is not None
    return found


async def wake(harness: ControllerHarness, name: str) -> None:
    await harness.controller.models.waker.wake_for_request(name)
    assert harness.state(name) == "ready"


def test_a_new_controller_finds_a_model_asleep_and_knows_what_the_one_before_knew(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    async def play(harness: ControllerHarness) -> None:
        assert harness.state("m") == "asleep"
        assert not harness.keeper.workers()
        await wake(harness, "m")
        assert harness.controller.models.sleeper.put_to_sleep(model(harness, "m"), SleepReason.EVICTED) == ""
        await harness.until(lambda: not list(model(harness, "m").instances()))
        before = model(harness, "m").sleep
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(lambda: harness.controller.models.waker.is_open)
        after = model(harness, "m").sleep
        assert harness.state("m") == "asleep"
        assert after.reason is SleepReason.EVICTED
        assert after.metadata.keys() == {"1"}
        assert (after.metadata, after.load_s) == (before.metadata, before.load_s)
        (version,) = model(harness, "m").route().versions
        assert (version.state, version.metadata, version.wake_wait_s) == ("asleep", after.metadata["1"], 300.0)
        await wake(harness, "m")

    run_in_harness(tmp_path, play)


def test_a_worker_for_which_requests_wait_yields_to_those_that_serve_no_longer_than_a_restarted_one(
    tmp_path: Path,
) -> None:
    add_model(tmp_path, "m")
    add_model(tmp_path, "other")

    async def play(harness: ControllerHarness) -> None:
        await wake(harness, "other")
        load = asyncio.create_task(harness.controller.models.waker.wake_for_request("m"))
        await harness.until(lambda: list(model(harness, "m").instances()))
        (instance,) = model(harness, "m").instances()
        assert start_bound_s(harness.controller.models.model_set, instance) == AWAITED_S
        await load
        by_hand = asyncio.create_task(harness.controller.models.loader.load("m"))
        await harness.until(lambda: len(list(model(harness, "m").instances())) == 2)
        staged = list(model(harness, "m").instances())[-1]
        assert start_bound_s(harness.controller.models.model_set, staged) == SPARE_S
        await by_hand

    run_in_harness(tmp_path, play)


def test_loads_that_hang_do_not_keep_a_model_that_has_served_from_waking(tmp_path: Path) -> None:
    hanging = ("h0", "h1")
    for name in ("m", *hanging):
        add_model(tmp_path, name)

    async def play(harness: ControllerHarness) -> None:
        await wake(harness, "m")
        assert harness.controller.models.sleeper.put_to_sleep(model(harness, "m"), SleepReason.TTL) == ""
        await harness.until(lambda: not list(model(harness, "m").instances()))
        harness.keeper.script = lambda child: None
        wakes = [asyncio.create_task(harness.controller.models.waker.wake_for_request(name)) for name in hanging]
        started = harness.keeper.workers
        await harness.until(lambda: sum(bool(each.received_of(ConfigureWorker)) for each in started()) == len(hanging))
        harness.keeper.script = Child.serve
        await wake(harness, "m")
        assert [harness.state(name) for name in hanging] == ["starting", "starting"]
        for each in wakes:
            each.cancel()

    run_in_harness(tmp_path, play)


def test_loads_that_hang_keep_those_of_models_that_were_never_loaded_waiting_only_while_they_are_not_slow(
    tmp_path: Path,
) -> None:
    hanging = ("h0", "h1")
    for name in ("m", *hanging):
        add_model(tmp_path, name)

    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = lambda child: None
        waker, started = harness.controller.models.waker, harness.keeper.workers
        wakes = [asyncio.create_task(waker.wake_for_request(name)) for name in hanging]
        await harness.until(lambda: sum(bool(each.received_of(ConfigureWorker)) for each in started()) == len(hanging))
        harness.keeper.script = Child.serve
        third = asyncio.create_task(waker.wake_for_request("m"))
        await harness.until(lambda: list(model(harness, "m").instances()))
        harness.controller.models.idle_watch.check(time.monotonic())
        await asyncio.sleep(0)
        assert len(started()) == len(hanging)
        for name in hanging:
            (instance,) = model(harness, name).instances()
            instance.require_worker().spawned_s -= 2 * SLOW_S
        harness.controller.models.idle_watch.check(time.monotonic())
        await third
        assert (harness.state("m"), *map(harness.state, hanging)) == ("ready", "starting", "starting")
        for each in wakes:
            each.cancel()

    run_in_harness(tmp_path, play)


def test_what_was_put_to_sleep_by_hand_is_asleep_after_a_crash_of_the_server_and_a_load_ends_that(
    tmp_path: Path,
) -> None:
    add_model(tmp_path, "m")

    async def put_to_sleep(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.state("m") == "ready")
        await harness.controller.models.sleeper.sleep("m")

    async def load(harness: ControllerHarness) -> None:
        assert harness.state("m") == "asleep"
        await harness.controller.models.loader.load("m")

    async def serve(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.state("m") == "ready")

    run_in_harness(tmp_path, put_to_sleep, load, serve, mode="none")


def test_on_a_full_disk_a_model_is_put_to_sleep_and_loaded_and_nothing_else_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(tmp_path, "m")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    async def play(harness: ControllerHarness) -> None:
        models = harness.controller.models
        await harness.until(lambda: harness.state("m") == "ready")
        monkeypatch.setattr(atomic_file, "write", fail)
        await models.sleeper.sleep("m")
        assert harness.state("m") == "asleep"
        await models.loader.load("m")
        assert harness.state("m") == "ready"
        found = [each["text"] for each in harness.events("not_saved", "m")]
        assert ["No space left" in each for each in found] == [True, True]
        for asked in (models.loader.unload("m"), models.loader.load("m"), models.loader.load("m", "{}")):
            with pytest.raises(MmsupError, match="nothing was changed"):
                await asked
        assert harness.state("m") == "ready"
        monkeypatch.undo()

    run_in_harness(tmp_path, play, mode="none")


@pytest.mark.parametrize("mode", ["on-demand", "poll"])
def test_the_files_of_a_model_that_is_asleep_may_change_and_its_next_load_takes_the_new_ones(
    tmp_path: Path, mode: str
) -> None:
    folder = add_model(tmp_path, "m", yaml="load: on-demand\n")

    async def play(harness: ControllerHarness) -> None:
        look = harness.controller.models.watcher.check
        await wake(harness, "m")
        first = model(harness, "m").active
        harness.controller.models.sleeper.put_to_sleep(model(harness, "m"), SleepReason.TTL)
        good = (folder.parent / "mmsup.yaml").read_text()
        (folder.parent / "mmsup.yaml").write_text("memroy: 1GiB\n")
        await look()
        assert harness.state("m") == "failed"
        assert "memroy" in model(harness, "m").reason()
        (version,) = model(harness, "m").route().versions
        assert (version.code, version.wake_wait_s) == ("model_failed", 0.0)
        (folder.parent / "mmsup.yaml").write_text(good + "priority: 7\n")
        await look()
        assert harness.state("m") == "asleep"
        await wake(harness, "m")
        active = model(harness, "m").active
        assert active is not None
        assert active is not first
        assert active.versions[0].spec.priority == 7

    run_in_harness(tmp_path, play, mode=mode)


def test_a_file_that_is_found_faulty_by_the_load_leaves_the_model_asleep_and_is_not_read_for_each_request(
    tmp_path: Path,
) -> None:
    folder = add_model(tmp_path, "m")

    async def play(harness: ControllerHarness) -> None:
        good = (folder.parent / "mmsup.yaml").read_text()
        (folder.parent / "mmsup.yaml").write_text("memroy: 1GiB\n")
        for _ in range(20):
            with pytest.raises(MmsupError, match="failed to load 'm'"):
                await harness.controller.models.waker.wake_for_request("m")
        assert harness.state("m") == "asleep"
        assert "memroy" in model(harness, "m").reason()
        assert len(harness.events("wake_refused")) == 1
        (folder.parent / "mmsup.yaml").write_text(good)
        await harness.controller.models.waker.wake("m", lambda _: None)  # a person need not wait for the next try
        assert harness.state("m") == "ready"

    run_in_harness(tmp_path, play)


def test_a_request_wakes_all_versions_of_its_model_and_those_with_a_fault_stay_out(tmp_path: Path) -> None:
    add_model(tmp_path, "m", "1")
    add_model(tmp_path, "m", "2")
    (add_model(tmp_path, "m", "3") / "model.py").unlink()
    policy = "version_policy: { all: {} }\n"
    (tmp_path / "repo" / "m" / "config.pbtxt").write_text(policy)

    async def play(harness: ControllerHarness) -> None:
        states = [(each.version, each.state) for each in model(harness, "m").route().versions]
        assert states == [("1", "asleep"), ("2", "asleep"), ("3", "failed")]
        assert model(harness, "m").route().default == "2"
        await harness.controller.models.waker.wake_for_request("m")
        states = [(each.version, each.state) for each in model(harness, "m").route().versions]
        assert states == [("1", "ready"), ("2", "ready"), ("3", "failed")]

    run_in_harness(tmp_path, play)


def test_models_without_requests_are_put_to_sleep_by_their_own_ttl(tmp_path: Path) -> None:
    for name, yaml in (("default", ""), ("own", "ttl: 20s\n"), ("never", "ttl: never\n"), ("pinned", "pin: true\n")):
        add_model(tmp_path, name, yaml=yaml)
    add_model(tmp_path, "start", yaml="load: start\n")
    names = ("default", "own", "never", "pinned", "start")

    async def play(harness: ControllerHarness) -> None:
        for name in ("default", "own", "never"):
            await wake(harness, name)
        await harness.until(lambda: all(harness.state(each) == "ready" for each in names))
        watch, now_s = harness.controller.models.idle_watch, time.monotonic()
        for later_s, asleep in ((19, set[str]()), (21, {"own"}), (301, {"own", "default"}), (1e6, {"own", "default"})):
            watch.check(now_s + later_s)
            assert {each for each in names if harness.state(each) == "asleep"} == asleep

    run_in_harness(tmp_path, play)


def test_a_repository_that_cannot_be_read_is_told_as_that_and_its_models_are_not_unknown(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    async def play(harness: ControllerHarness) -> None:
        waker, repository = harness.controller.models.waker, tmp_path / "repo"
        repository.rename(tmp_path / "away")
        with pytest.raises(MmsupError, match="failed to load 'm': a model repository cannot be read") as caught:
            await waker.wake_for_request("m")
        assert caught.value.code == "load_failed"
        assert str(repository) in model(harness, "m").reason()
        assert str(repository) not in caught.value.text
        with pytest.raises(MmsupError, match="failed to poll") as caught:
            await harness.controller.models.loader.load("other")
        assert caught.value.code == "unknown_model"
        (tmp_path / "away").rename(repository)
        await waker.wake("m", lambda _: None)
        assert harness.state("m") == "ready"

    run_in_harness(tmp_path, play)


def test_a_load_by_hand_that_finds_no_room_leaves_its_reason_at_the_model_that_is_asleep(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = fail_for_room
        with pytest.raises(MmsupError, match="no room today"):
            await harness.controller.models.loader.load("m")
        assert harness.state("m") == "asleep"
        assert "no room today" in model(harness, "m").reason()

    run_in_harness(tmp_path, play)


def test_a_model_that_can_never_fit_is_asleep_again_at_once_and_nobody_is_to_ask_again(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    found: list[tuple[Path, str]] = []

    async def measure(harness: ControllerHarness) -> None:
        await wake(harness, "m")
        active = model(harness, "m").active
        assert active is not None
        found.append((harness.controller.context.state_dir.footprints, active.content_id))

    async def play(harness: ControllerHarness) -> None:
        for _ in range(3):
            with pytest.raises(MmsupError, match="more than the whole budget of 500MiB") as caught:
                await harness.controller.models.waker.wake_for_request("m")
            assert (caught.value.code, caught.value.retryable) == ("does_not_fit", False)
            assert "--memory-budget" not in caught.value.text
            assert harness.state("m") == "asleep"
        assert "raise --memory-budget" in model(harness, "m").reason()
        assert not harness.keeper.workers()
        assert len(harness.events("load_refused")) == 1

    run_in_harness(tmp_path, measure)
    ((path, digest),) = found
    store = FootprintStore(path)  # once the server that measures too has written its own
    store.put(FootprintKey("m", "1", "custom", "cpu"), digest, Footprint(900 << 20, 900 << 20))
    store.write(store.contents())
    run_in_harness(tmp_path, play, memory_budget_bytes=500 << 20)


def fail_for_room(child: Child) -> None:
    child.send(Hello("worker", WIRE_VERSION, *child.life))
    child.send(LoadFailed("insufficient_gpu_memory", "no room today"))
    child.process.kill()


def test_a_new_server_knows_what_the_return_of_a_model_takes(tmp_path: Path) -> None:
    add_model(tmp_path, "m")

    async def leave_footprint(harness: ControllerHarness) -> None:
        store = FootprintStore(harness.controller.context.state_dir.footprints)
        store.put(FootprintKey("m", "1", "custom", "cpu"), "", Footprint(load_s=1.25))
        store.write(store.contents())

    async def look(harness: ControllerHarness) -> None:
        rows = await harness.controller.api.handlers.handle("list", {}, lambda _: None)
        shown = await harness.controller.api.handlers.handle("show", {"name": "m"}, lambda _: None)
        assert (harness.state("m"), rows["models"][0]["cold_start_s"], shown["cold_start_s"]) == ("asleep", 1.25, 1.25)

    run_in_harness(tmp_path, leave_footprint, look)


def test_a_model_that_is_started_again_is_not_awake_for_whoever_wakes_it(tmp_path: Path) -> None:
    add_model(tmp_path, "m", yaml="pin: true\n")

    async def play(harness: ControllerHarness) -> None:
        waker, sleeper = harness.controller.models.waker, harness.controller.models.sleeper
        await harness.until(lambda: harness.state("m") == "ready")
        assert (await waker.wake("m", print))["state"] == "ready"
        with pytest.raises(MmsupError, match="is pinned") as refused:
            await sleeper.sleep("m")
        assert (refused.value.code, refused.value.retryable) == ("conflict", False)

        def fail(child: Child) -> None:
            child.process.kill()

        harness.keeper.script = fail
        harness.keeper.workers()[0].process.kill()
        await harness.until(lambda: harness.state("m") == "backoff")
        with pytest.raises(MmsupError, match="'m' is not asleep: it is backoff, and does not serve now") as refused:
            await waker.wake("m", print)
        assert (refused.value.code, refused.value.retryable) == ("model_restarting", True)

    run_in_harness(tmp_path, play)
