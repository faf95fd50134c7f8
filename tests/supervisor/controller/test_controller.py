"""The brain among played children: what it starts, tells, restarts, swaps, remembers and ends."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brain_double import Child, ControllerHarness, add_model, fail_to_load
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.memory.status_page import Activity
from mmsup.ipc.messages.gateway_control import (
    BadReply,
    CommandReply,
    CommandRequest,
    Condemned,
    ConfigureGateway,
    DrainGateway,
    GatewayDrained,
    LinkWorker,
    Ping,
    Pong,
    RequestOverdue,
    Route,
    Synced,
    UnlinkWorker,
    Unroute,
    Verdict,
)
from mmsup.ipc.messages.handshake import WIRE_VERSION, Hello
from mmsup.ipc.messages.keeper_control import (
    ForgetChild,
    NotifySystemd,
    ReloadRequested,
    ShutdownFinished,
    SignalChild,
    Spawn,
    TerminateRequested,
)
from mmsup.ipc.messages.worker_control import AttachGateway, LoadFailed
from mmsup.supervisor.instances import actions, lifecycle_events

pytestmark = pytest.mark.slow


def in_house(
    home: Path,
    play: Callable[[ControllerHarness], Awaitable[None]],
    models: tuple[str, ...] = ("good",),
    **options: Any,
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, models, **options) as house:
            await play(house)

    asyncio.run(run())


def ignore(child: Child) -> None:
    """Never say anything."""


def greet(child: Child) -> None:
    child.send(Hello("worker", WIRE_VERSION, *child.life))


def ready(house: ControllerHarness, *names: str) -> Callable[[], bool]:
    return lambda: all(house.state(name) == "ready" for name in names)


def routes_of(house: ControllerHarness, name: str) -> list[Route]:
    return [each for each in house.gateway().received_of(Route) if each.name == name]


def test_every_model_is_served_and_the_server_says_so_once(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.keeper.sent_of(NotifySystemd) and house.events("ready"))
        assert NotifySystemd("READY=1") in house.keeper.sent
        assert [each.spec.name for each in house.gateway().received_of(LinkWorker)] == ["a", "b"]
        await house.until(lambda: house.gateway().received_of(Synced)[-1].ready)
        assert len(house.events("ready")) == 1

    in_house(tmp_path, play, ("a", "b"))


def test_a_worker_is_attached_before_the_gateway_hears_of_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        await house.until(lambda: worker.received_of(AttachGateway) and house.gateway().received_of(LinkWorker))
        (attach,) = worker.received_of(AttachGateway)
        (link,) = house.gateway().received_of(LinkWorker)
        assert attach.gateway == 0
        assert attach.identity == link.identity
        assert (link.instance, link.generation) == worker.life

    in_house(tmp_path, play)


def test_the_environment_of_a_worker_is_an_allow_list(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        assert set(worker.spawn.env) == {
            "PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE",
            "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
        }  # fmt: skip
        assert worker.spawn.env["CUDA_VISIBLE_DEVICES"] == ""

    in_house(tmp_path, play)


def test_a_killed_worker_is_judged_recorded_once_and_followed_by_another(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "victim", "bystander"))
        victim, bystander = sorted(house.keeper.workers(), key=lambda each: each.spawn.cwd, reverse=True)
        victim.process.kill()
        await house.until(lambda: house.events("worker_exit"))
        await house.until(ready(house, "victim"))
        await house.until(lambda: house.gateway().received_of(Verdict))
        (verdict,) = house.gateway().received_of(Verdict)
        assert (verdict.code, verdict.retryable) == ("worker_crashed", True)
        (event,) = house.events("worker_exit")
        assert (event["model"], event["sig"], event["oom"], event["restart"]) == ("victim", 9, False, 1)
        assert victim.token in {each.token for each in house.keeper.sent_of(ForgetChild)}
        assert bystander.exited is None
        assert house.events("worker_exit", "bystander") == []

    in_house(tmp_path, play, ("victim", "bystander"))


def test_gateways_hear_that_a_hung_worker_is_condemned_before_it_is_killed(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        gateway = house.gateway()
        order: list[str] = []
        kill = worker.process.send_signal

        def note(sig: int) -> None:
            order.extend(type(each).__name__ for each in gateway.received if isinstance(each, Condemned))
            order.append("killed")
            kill(sig)

        worker.process.send_signal = note  # type: ignore[method-assign]  # a witness
        worker.page.set_activity(Activity.BUSY, 1)
        gateway.send(RequestOverdue(*worker.life, 1.0))
        await house.until(lambda: house.events("worker_exit"))
        assert order[:2] == ["Condemned", "killed"]
        assert gateway.received_of(Condemned)[0].code == "worker_hung"
        assert house.events("worker_exit")[0]["cause"] == "hung"

    in_house(tmp_path, play)


def test_a_worker_that_is_dead_already_is_not_condemned_for_its_silence(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        instance = house.controller.model_set.instance(worker.life[0])
        assert instance is not None
        worker.page.set_activity(Activity.BUSY, 1)
        house.keeper.controller = None  # the keeper's word comes last
        worker.process.kill()
        await house.keeper.deaths.wait()
        over = asyncio.Event()
        actions.expect_exit(instance, 0.0, lifecycle_events.ProtocolViolated("it closed its control channel"))
        asyncio.get_running_loop().call_later(0.0, over.set)
        house.controller.overdue(RequestOverdue(*worker.life, 9.0))
        await over.wait()
        house.keeper.controller = house.controller
        assert worker.exited is not None
        house.controller.on_keeper_message(worker.exited, [])
        assert not house.events("worker_condemned")
        assert house.events("worker_exit")[0]["cause"] == "signal SIGKILL"

    in_house(tmp_path, play)


def test_a_false_reply_ends_the_worker_that_gave_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        house.gateway().send(BadReply(*worker.life, "an offset outside of the slot"))
        await house.until(lambda: house.events("worker_exit"))
        assert house.events("worker_exit")[0]["cause"] == "bad reply"
        await house.until(ready(house, "good"))

    in_house(tmp_path, play)


def test_bytes_that_are_no_message_end_the_load_with_a_reason(tmp_path: Path) -> None:
    def talk_nonsense(child: Child) -> None:
        child.channel.send(b"\x00\x01")

    async def play(house: ControllerHarness) -> None:
        house.keeper.script = talk_nonsense
        await house.until(lambda: house.events("worker_exit"))
        assert "no message of ours" in house.events("load_failed")[0]["text"]

    in_house(tmp_path, play)


def test_a_crash_in_words_condemns_before_the_exit_and_is_not_killed(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (worker,) = house.keeper.workers()
        os.write(worker.crash, b"Fatal Python error: Segmentation fault\n\nCurrent thread\n")
        await house.until(lambda: house.gateway().received_of(Condemned))
        assert house.gateway().received_of(Condemned)[0].code == "worker_crashed"
        assert not house.keeper.sent_of(SignalChild)
        worker.process.send_signal(signal.SIGSEGV)
        await house.until(lambda: house.events("worker_exit"))
        assert house.events("worker_exit")[0]["sig"] == signal.SIGSEGV

    in_house(tmp_path, play)


def test_one_bad_model_stops_neither_the_start_nor_the_others(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        add_model(tmp_path, "odd", yaml="memory: 4 gigs\n")

        house.keeper.script = lambda child: (fail_to_load if "/repo/bad/" in child.spawn.cwd else Child.serve)(child)
        await house.until(lambda: house.events("ready"))
        assert house.state("good") == "ready"
        await house.until(lambda: house.state("bad") in ("backoff", "failed"))
        assert "the artefact is broken" in house.events("load_failed", "bad")[0]["text"]

    in_house(tmp_path, play, ("bad", "good"))


def test_what_a_worker_says_of_its_load_is_cut(tmp_path: Path) -> None:
    def rant(child: Child) -> None:
        child.send(Hello("worker", WIRE_VERSION, *child.life))
        child.send(LoadFailed("c" * 50_000, "t" * 50_000))
        child.process.kill()

    async def play(house: ControllerHarness) -> None:
        house.keeper.script = rant
        await house.until(lambda: house.events("worker_exit"))
        assert len(json.dumps(house.events("load_failed")[0])) < 5000

    in_house(tmp_path, play)


def test_a_model_whose_configuration_is_faulty_is_failed_with_its_reason(tmp_path: Path) -> None:
    add_model(tmp_path, "odd", yaml="memory: 4 gigs\n")

    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        route = next(each for each in house.gateway().received_of(Route) if each.name == "odd")
        assert route.versions[0].state == "failed"
        assert route.versions[0].code == "model_failed"
        assert "memory" in route.versions[0].reason

    in_house(tmp_path, play)


def test_a_model_that_is_named_and_not_there_is_an_event_and_a_failed_model(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (event,) = house.events("load_failed")
        assert event["model"] == "nobody"
        assert "no repository holds this model" in event["text"]
        status = await house.controller.handlers.handle("status", {}, lambda _: None)
        (model,) = [each for each in status["models"] if each["name"] == "nobody"]
        assert (model["state"], model["reason"]) == ("failed", event["text"])
        assert routes_of(house, "nobody")[-1].versions[0].code == "model_failed"

    in_house(tmp_path, play, control_mode="explicit", load_models=("good", "nobody"))


def test_a_model_of_which_nothing_is_left_after_a_restart_is_forgotten(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.state("bad") == "failed" and house.controller.gateways.are_up())
        await house.kill_controller()
        shutil.rmtree(tmp_path / "repo" / "bad")
        await house.start_controller()
        await house.until(ready(house, "good"))
        await house.until(lambda: house.state("bad") == "unknown")

    add_model(tmp_path, "bad", yaml="memroy: 1GiB\n")
    in_house(tmp_path, play)


def test_warnings_of_configuration_are_said_once_at_the_start_and_by_no_later_brain(tmp_path: Path) -> None:
    async def run() -> None:
        house = ControllerHarness(tmp_path)
        house.output = str(tmp_path / "output")
        (tmp_path / "repo" / "no model").mkdir()
        add_model(tmp_path, "early", yaml="pin: true\n")
        async with asyncio.timeout(60), house:
            await house.until(ready(house, "good", "early"))
            await house.kill_controller()
            await house.start_controller()
            await house.until(ready(house, "good", "early"))

    asyncio.run(run())
    lines = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    said = [each for each in lines if each["event"] == "configuration"]
    assert [(each["level"], each["place"]) for each in said] == [
        ("warning", str(tmp_path / "repo")),
        ("warning", "early: pin"),
    ]


def test_at_most_two_load_at_a_time(tmp_path: Path) -> None:
    loading: list[int] = []

    async def play(house: ControllerHarness) -> None:
        def script(child: Child) -> None:
            loading.append(len([each for each in house.keeper.workers() if not each.received_of(AttachGateway)]))
            asyncio.get_running_loop().call_later(0.01, child.serve)

        house.keeper.script = script
        await house.until(ready(house, *"abcdef"))
        assert max(loading) <= 2

    in_house(tmp_path, play, tuple("abcdef"))


def test_a_reload_serves_from_the_old_until_the_new_is_ready(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (old,) = house.keeper.workers()
        result = await house.controller.loader.load("good")
        assert result["state"] == "ready"
        names = [type(each).__name__ for each in house.gateway().received if not isinstance(each, Ping)]
        assert names.index("Unlink") > [at for at, name in enumerate(names) if name == "Link"][1]
        await house.until(lambda: old.exited is not None and house.events("worker_stopped"))
        assert not house.events("worker_exit")

    in_house(tmp_path, play)


def test_a_reload_that_fails_leaves_the_old_one_and_says_why(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        (old,) = house.keeper.workers()
        house.keeper.script = fail_to_load
        with pytest.raises(MmsupError, match="failed to load 'good': the artefact is broken") as caught:
            await house.controller.loader.load("good")
        assert caught.value.code == "load_failed"
        await house.until(lambda: house.keeper.workers() == [old])
        assert house.state("good") == "ready"
        assert not house.gateway().received_of(UnlinkWorker)

    in_house(tmp_path, play)


def test_concurrent_loads_of_one_name_are_one_load(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        results = await asyncio.gather(*[house.controller.loader.load("good") for _ in range(32)])
        assert {each["state"] for each in results} == {"ready"}
        assert len(house.events("worker_spawn", "good")) == 1

    in_house(tmp_path, play, control_mode="explicit")


def test_an_unload_answers_when_nothing_is_routed_and_then_drains(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        await house.controller.loader.unload("good")
        heard = house.gateway().received
        assert [each for each in heard if isinstance(each, Route)][-1].wanted is False
        assert any(isinstance(each, UnlinkWorker) for each in heard)
        await house.until(lambda: not house.keeper.workers() and house.events("worker_stopped"))
        assert not house.events("worker_exit")
        assert not house.keeper.sent_of(SignalChild)

    in_house(tmp_path, play)


def test_an_unload_ends_a_load_under_way_with_conflict(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = ignore
        loading = asyncio.ensure_future(house.controller.loader.load("good"))
        await house.until(house.keeper.workers)
        await house.controller.loader.unload("good")
        with pytest.raises(MmsupError, match="unloaded meanwhile") as caught:
            await loading
        assert caught.value.code == "conflict"
        await house.until(lambda: not house.keeper.workers())
        house.keeper.script = Child.serve
        assert (await house.controller.loader.load("good"))["state"] == "ready"

    in_house(tmp_path, play, control_mode="explicit")


def test_load_of_an_unknown_model_is_refused_in_the_words_clients_know(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        with pytest.raises(MmsupError, match="failed to load 'nope', failed to poll from model repository") as caught:
            await house.controller.loader.load("nope")
        assert caught.value.code == "unknown_model"

    in_house(tmp_path, play)


def test_in_poll_mode_clients_may_not_load(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        gateway = house.gateway()
        for number, verb in enumerate(("load", "events", "index")):
            gateway.send(CommandRequest(number, verb, {"name": "good"} if verb == "load" else {}))
        await house.until(lambda: len(gateway.received_of(CommandReply)) == 3)
        answers = sorted(gateway.received_of(CommandReply), key=lambda each: each.id)
        assert [each.code for each in answers] == ["forbidden", "forbidden", ""]
        assert answers[2].result == [{"name": "good", "version": "1", "state": "READY", "reason": ""}]

    in_house(tmp_path, play, control_mode="poll")


def test_a_changed_model_is_reloaded_and_a_new_one_loaded_at_reload(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good", "calm"))
        (tmp_path / "repo" / "good" / "1" / "model.py").write_text("class Model: changed = True\n")
        add_model(tmp_path, "fresh")
        house.controller.on_keeper_message(ReloadRequested(), [])
        await house.until(lambda: house.events("model_reloaded", "good"))
        await house.until(ready(house, "fresh", "good"))
        assert len(house.events("worker_spawn", "calm")) == 1

    in_house(tmp_path, play, ("good", "calm"))


def test_a_model_that_left_the_repository_is_unrouted(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good", "gone"))
        for each in ("1/model.py", "mmsup.yaml"):
            (tmp_path / "repo" / "gone" / each).unlink()
        (tmp_path / "repo" / "gone" / "1").rmdir()
        (tmp_path / "repo" / "gone").rmdir()
        house.controller.on_keeper_message(ReloadRequested(), [])
        await house.until(lambda: house.gateway().received_of(Unroute))
        assert house.state("gone") == "unknown"

    in_house(tmp_path, play, ("good", "gone"))


def test_six_deaths_in_a_minute_open_the_breaker_of_that_model_alone(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        def die_when_ready(child: Child) -> None:
            child.serve()
            if "/repo/bad/" in child.spawn.cwd:
                child.process.kill()

        house.controller.model_set.context.rng.uniform = lambda a, b: 0.0  # type: ignore[method-assign]  # no waiting here
        house.keeper.script = die_when_ready
        await house.until(lambda: house.events("crash_loop"))
        assert len(house.events("worker_exit", "bad")) == 6
        assert house.state("bad") == "failed"
        await house.until(ready(house, "good"))
        await house.until(lambda: routes_of(house, "bad")[-1].versions[0].code == "crash_loop")

    in_house(tmp_path, play, ("bad", "good"))


def test_a_dead_gateway_is_followed_by_one_that_is_told_everything(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good"))
        first = house.gateway()
        (worker,) = house.keeper.workers()
        first.process.kill()
        await house.until(lambda: house.controller.gateways.are_up() and first.exited)
        second = house.gateway()
        assert second.life == (0, 2)
        assert [each.name for each in second.received_of(Route)] == ["good"]
        assert len(second.received_of(LinkWorker)) == 1
        await house.until(lambda: len(worker.received_of(AttachGateway)) == 2)
        assert worker.received_of(AttachGateway)[1].identity.startswith(b"g0.2.")
        assert worker.exited is None
        assert house.events("gateway_exit")[0]["gateway"] == 0

    in_house(tmp_path, play)


def test_a_gateway_that_died_of_a_signal_without_a_name_is_followed_by_another(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        house.gateway().process.send_signal(40)
        await house.until(lambda: house.events("gateway_exit"))
        assert house.events("gateway_exit")[0]["text"] == "gateway 0 ended by signal SIG40"
        await house.until(house.controller.gateways.are_up)

    in_house(tmp_path, play)


def test_a_server_with_more_than_can_be_remembered_says_so_once_and_serves(tmp_path: Path) -> None:
    async def run() -> None:
        house = ControllerHarness(tmp_path)
        house.output = str(tmp_path / "output")
        for name in ("a", "b", "c"):
            add_model(tmp_path, name)
            noise = base64.b64encode(os.urandom(32 << 10)).decode()
            pbtxt = f'parameters {{ key: "noise" value {{ string_value: "{noise}" }} }}\n'
            (tmp_path / "repo" / name / "config.pbtxt").write_text(pbtxt)
        async with asyncio.timeout(60), house:
            await house.until(ready(house, "a", "b", "c", "good"))
            house.keeper.workers()[0].process.kill()
            await house.until(lambda: house.events("worker_exit"))
            await house.until(ready(house, "a", "b", "c", "good"))

    asyncio.run(run())
    lines = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    assert len([each for each in lines if each["event"] == "not_remembered"]) == 1


def test_a_new_brain_takes_over_the_living_without_touching_them(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        before = {each.token for each in house.keeper.workers()}
        gateway = house.gateway()
        await house.kill_controller()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        assert {each.token for each in house.keeper.workers()} == before
        assert house.gateway() is gateway
        assert [type(each) for each in gateway.received].count(ConfigureGateway) == 2
        await house.until(lambda: gateway.received_of(Synced)[-1].ready)
        assert house.events("readopted")[0]["kept"] == 2
        assert not house.events("worker_exit")
        assert len(house.keeper.sent_of(Spawn)) == 3

    in_house(tmp_path, play, ("a", "b"))


def test_a_gateway_is_not_told_that_it_knows_everything_before_every_link_is_said(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        gateway = house.gateway()
        await house.kill_controller()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        names = [type(each).__name__ for each in gateway.received]
        names = names[len(names) - names[::-1].index("Configure") :]
        first = names.index("Synced")
        assert names[:first].count("Link") == 2
        assert "Unlink" not in names

    in_house(tmp_path, play, ("a", "b"))


def test_a_worker_that_died_while_no_brain_was_there_is_recorded_and_replaced(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        (worker,) = house.keeper.workers()
        await house.kill_controller()
        worker.process.kill()
        await house.keeper.deaths.wait()
        await house.start_controller()
        await house.until(ready(house, "good"))
        assert len(house.events("worker_exit")) == 1
        assert [each.life for each in house.keeper.workers()] == [(1, 2)]

    in_house(tmp_path, play)


def test_a_worker_that_became_ready_while_no_brain_was_there_serves(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = greet
        await house.until(lambda: house.state("good") == "loading")
        await house.kill_controller()
        (child,) = house.keeper.workers()
        child.serve()
        await house.start_controller()
        await house.until(ready(house, "good"))
        assert house.keeper.workers() == [child]

    in_house(tmp_path, play)


def test_a_worker_whose_ready_died_with_its_brain_begins_anew_and_nothing_is_held_against_it(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = greet
        await house.until(lambda: house.state("good") == "loading")
        await house.kill_controller()
        (child,) = house.keeper.workers()
        child.page.set_activity(Activity.IDLE, time.monotonic_ns())
        house.keeper.script = Child.serve
        await house.start_controller()
        await house.until(ready(house, "good"))
        assert [each.life for each in house.keeper.workers()] == [(1, 2)]
        assert not house.events("worker_exit")

    in_house(tmp_path, play)


def test_a_gateway_that_died_while_no_brain_was_there_is_followed_by_one_and_not_by_two(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        gateway = house.gateway()
        await house.kill_controller()
        gateway.process.kill()
        await house.keeper.deaths.wait()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        await house.controller.gateways.wait_until_applied(1.0)
        spawned = [each.token for each in house.keeper.sent_of(Spawn) if each.token.startswith("gateway")]
        assert spawned == ["gateway.0.1", "gateway.0.2"]

    in_house(tmp_path, play)


def test_what_a_gateway_asked_a_dead_brain_is_not_carried_out_by_the_next(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        gateway = house.gateway()
        await house.kill_controller()
        gateway.send(Pong(1))
        gateway.send(CommandRequest(7, "unload", {"name": "good"}))  # its client was told to try again, or will be
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        assert gateway.received_of(Ping)[-1].number == 1, "the Pong from before was taken for the answer"
        await house.controller.gateways.wait_until_applied(1.0)
        assert house.state("good") == "ready"
        assert not gateway.received_of(CommandReply)
        assert not house.events("model_unloaded")

    in_house(tmp_path, play)


def test_what_a_dead_brain_made_for_lives_that_it_could_tell_nobody_of_is_cleared(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        await house.kill_controller()
        folder, socket, other = tmp_path / "state/scratch/w9.1", tmp_path / "run/w9.1", tmp_path / "run/other"
        folder.mkdir()
        for file in (folder / "something", socket, other):
            file.touch()
        await house.start_controller()
        await house.until(house.controller.gateways.are_up)
        await house.until(lambda: not folder.exists())
        assert not socket.exists()
        assert other.exists()
        assert (tmp_path / "state/scratch/w1.1").is_dir(), "the folder of one that lives is gone"

    in_house(tmp_path, play)


def test_a_reload_that_the_brain_did_not_survive_leaves_the_old_one(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        (old,) = house.keeper.workers()
        house.keeper.script = greet
        loading = asyncio.ensure_future(house.controller.loader.load("good"))
        await house.until(lambda: len(house.keeper.workers()) == 2)
        await house.until(lambda: any(str(each.state) == "loading" for each in house.controller.model_set.instances()))
        await house.kill_controller()
        await asyncio.gather(loading, return_exceptions=True)
        await house.start_controller()
        await house.until(lambda: house.keeper.workers() == [old])
        assert house.state("good") == "ready"

    in_house(tmp_path, play)


def test_a_child_that_nobody_remembers_is_ended(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        (stray,) = house.keeper.workers()
        await house.kill_controller()
        house.keeper.remembered = ""
        await house.start_controller()
        await house.until(lambda: stray.exited is not None)
        await house.until(ready(house, "good"))

    in_house(tmp_path, play)


def test_wishes_survive_the_brain_and_a_crash_but_not_an_orderly_stop(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(ready(house, "good", "other"))
        await house.controller.loader.unload("good")
        await house.until(lambda: len(house.keeper.workers()) == 1)
        await house.kill_controller()
        house.keeper.remembered = ""  # as after a crash of everything
        await house.start_controller()
        await house.until(ready(house, "other"))
        assert house.state("good") == "stopped"
        house.controller.on_keeper_message(TerminateRequested(), [])
        await house.until(lambda: house.keeper.sent_of(ShutdownFinished))
        assert not (tmp_path / "state" / "wanted.json").exists()

    in_house(tmp_path, play, ("good", "other"))


def test_an_orderly_end_is_not_ready_drained_stopped_and_then_finished(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        gateway = house.gateway()
        house.controller.on_keeper_message(TerminateRequested(), [])
        await house.until(lambda: house.keeper.sent_of(ShutdownFinished))
        assert house.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(0)]
        names = [type(each).__name__ for each in gateway.received]
        last_synced = max(at for at, name in enumerate(names) if name == "Synced")
        assert last_synced < names.index("Drain") < names.index("Unlink")
        assert not gateway.received_of(Synced)[-1].ready
        assert house.events("worker_stopped")
        assert not house.events("worker_exit")
        assert not house.keeper.workers()

    in_house(tmp_path, play)


def test_the_end_waits_for_work_in_flight_also_after_a_gateway_has_died(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        house.gateway().process.kill()
        await house.until(lambda: house.events("gateway_exit") and house.controller.gateways.are_up())
        await finish_only_when_drained(house)

    in_house(tmp_path, play)


def test_a_brain_that_follows_one_that_was_draining_waits_for_work_in_flight(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        await house.until(lambda: house.events("ready"))
        house.keeper.is_busy = True
        house.controller.on_keeper_message(TerminateRequested(), [])
        await house.until(lambda: house.gateway().received_of(DrainGateway))
        await house.kill_controller()
        house.gateway().received.clear()
        await house.start_controller(stopping=True)
        await finish_only_when_drained(house)

    in_house(tmp_path, play)


async def finish_only_when_drained(house: ControllerHarness) -> None:
    house.keeper.is_busy = True
    gateway = house.gateway()
    house.controller.on_keeper_message(TerminateRequested(), [])
    await house.until(lambda: gateway.received_of(DrainGateway))
    await house.controller.gateways.wait_until_applied(1.0)
    assert not gateway.received_of(UnlinkWorker)
    gateway.send(GatewayDrained())
    await house.until(lambda: house.keeper.sent_of(ShutdownFinished))


def test_a_server_told_to_exit_on_error_ends_when_a_model_fails_at_the_start(tmp_path: Path) -> None:
    async def play(house: ControllerHarness) -> None:
        house.keeper.script = fail_to_load
        await house.until(lambda: house.keeper.sent_of(ShutdownFinished))
        assert house.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(1)]

    in_house(tmp_path, play, exit_on_error=True)


def test_nothing_is_left_open_when_a_brain_lets_go(tmp_path: Path) -> None:
    async def run() -> None:
        async with ControllerHarness(tmp_path, ("a", "b")) as house:
            await house.until(lambda: house.events("ready"))

    def still_open() -> int:
        gc.collect()  # what earlier tests have let go of is not to go in between
        return len(os.listdir("/proc/self/fd"))

    asyncio.run(run())
    before = still_open()
    asyncio.run(run())
    assert still_open() == before
