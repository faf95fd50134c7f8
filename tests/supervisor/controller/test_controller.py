"""A controller among played children: what it starts, sends, restarts, replaces, saves and stops."""

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

from controller_double import Child, ControllerHarness, add_model, fail_to_load
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
    SaveCheckpoint,
    ShutdownFinished,
    SignalChild,
    Spawn,
    TerminateRequested,
)
from mmsup.ipc.messages.worker_control import AttachGateway, LoadFailed
from mmsup.supervisor.instances import actions, lifecycle_events
from mmsup.supervisor.models.model import Model
from mmsup.supervisor.models.model_records import ModelRecord

pytestmark = pytest.mark.slow


def run_in_harness(
    home: Path,
    play: Callable[[ControllerHarness], Awaitable[None]],
    models: tuple[str, ...] = ("good",),
    **options: Any,
) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(home, models, **options) as harness:
            await play(harness)

    asyncio.run(run())


def ignore(child: Child) -> None:
    """Never say anything."""


def greet(child: Child) -> None:
    child.send(Hello("worker", WIRE_VERSION, *child.life))


def ready(harness: ControllerHarness, *names: str) -> Callable[[], bool]:
    return lambda: all(harness.state(name) == "ready" for name in names)


def routes_of(harness: ControllerHarness, name: str) -> list[Route]:
    return [each for each in harness.gateway().received_of(Route) if each.name == name]


def test_every_model_is_served_and_ready_is_announced_once(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.keeper.sent_of(NotifySystemd) and harness.events("ready"))
        assert NotifySystemd("READY=1") in harness.keeper.sent
        assert [each.spec.name for each in harness.gateway().received_of(LinkWorker)] == ["a", "b"]
        await harness.until(lambda: harness.gateway().received_of(Synced)[-1].ready)
        assert len(harness.events("ready")) == 1

    run_in_harness(tmp_path, play, ("a", "b"))


def test_a_worker_is_attached_before_it_is_linked_to_the_gateway(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        await harness.until(lambda: worker.received_of(AttachGateway) and harness.gateway().received_of(LinkWorker))
        (attach,) = worker.received_of(AttachGateway)
        (link,) = harness.gateway().received_of(LinkWorker)
        assert attach.seat == 0
        assert attach.identity == link.identity
        assert (link.instance, link.generation) == worker.life

    run_in_harness(tmp_path, play)


def test_the_environment_of_a_worker_is_an_allow_list(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        assert set(worker.spawn.env) == {
            "PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE",
            "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MMSUP_WORKER",
            "PYTHONSAFEPATH",
        }  # fmt: skip
        assert worker.spawn.env["CUDA_VISIBLE_DEVICES"] == ""

    run_in_harness(tmp_path, play)


def test_a_killed_worker_has_a_verdict_one_event_and_a_successor(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "victim", "bystander"))
        victim, bystander = sorted(harness.keeper.workers(), key=lambda each: each.spawn.cwd, reverse=True)
        victim.process.kill()
        await harness.until(lambda: harness.events("worker_exit"))
        await harness.until(ready(harness, "victim"))
        await harness.until(lambda: harness.gateway().received_of(Verdict))
        (verdict,) = harness.gateway().received_of(Verdict)
        assert (verdict.code, verdict.retryable) == ("worker_crashed", True)
        (event,) = harness.events("worker_exit")
        assert (event["model"], event["sig"], event["oom"], event["restart"]) == ("victim", 9, False, 1)
        assert victim.token in {each.token for each in harness.keeper.sent_of(ForgetChild)}
        assert bystander.exited is None
        assert harness.events("worker_exit", "bystander") == []

    run_in_harness(tmp_path, play, ("victim", "bystander"))


def test_a_death_saves_and_touches_the_model_that_it_concerns_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: set[str] = set()
    update = Model.update_readiness

    def note(model: Model) -> bool:
        touched.add(model.name)
        return update(model)

    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        await harness.controller.gateways.barriers.wait_until_applied(1.0)
        harness.keeper.sent.clear()
        monkeypatch.setattr(Model, "update_readiness", note)
        victim = next(each for each in harness.keeper.workers() if "/repo/victim/" in each.spawn.cwd)
        victim.process.kill()
        await harness.until(lambda: harness.events("worker_exit"))
        await harness.until(ready(harness, "victim", "bystander"))
        await harness.controller.gateways.barriers.wait_until_applied(1.0)
        assert {each.key for each in harness.keeper.sent_of(SaveCheckpoint)} == {"model/victim"}
        assert touched == {"victim"}
        assert {each.name for each in harness.saved().all_of(ModelRecord)} == {"victim", "bystander"}

    run_in_harness(tmp_path, play, ("victim", "bystander"))


def test_a_hung_worker_is_condemned_at_the_gateways_before_it_is_killed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        gateway = harness.gateway()
        order: list[str] = []
        kill = worker.process.send_signal

        def note(sig: int) -> None:
            order.extend(type(each).__name__ for each in gateway.received if isinstance(each, Condemned))
            order.append("killed")
            kill(sig)

        worker.process.send_signal = note  # type: ignore[method-assign]  # a witness
        worker.page.set_activity(Activity.BUSY, 1)
        gateway.send(RequestOverdue(*worker.life, 1.0))
        await harness.until(lambda: harness.events("worker_exit"))
        assert order[:2] == ["Condemned", "killed"]
        assert gateway.received_of(Condemned)[0].code == "worker_hung"
        assert harness.events("worker_exit")[0]["cause"] == "hung"

    run_in_harness(tmp_path, play)


def test_a_worker_that_is_dead_already_is_not_condemned_for_its_silence(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        instance = harness.controller.models.model_set.instance(worker.life[0])
        assert instance is not None
        worker.page.set_activity(Activity.BUSY, 1)
        router, harness.keeper.router = harness.keeper.router, None  # the keeper's message comes last
        worker.process.kill()
        await harness.keeper.deaths.wait()
        over = asyncio.Event()
        actions.expect_exit(instance, 0.0, lifecycle_events.ProtocolViolated("it closed its control channel"))
        asyncio.get_running_loop().call_later(0.0, over.set)
        gateway = harness.controller.gateways.pool.seats[0]
        harness.controller.gateways.events.on_message(gateway, RequestOverdue(*worker.life, 9.0))
        await over.wait()
        harness.keeper.router = router
        assert worker.exited is not None
        harness.from_keeper(worker.exited)
        assert not harness.events("worker_condemned")
        assert harness.events("worker_exit")[0]["cause"] == "signal SIGKILL"

    run_in_harness(tmp_path, play)


def test_a_false_reply_ends_the_worker_that_gave_it(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        harness.gateway().send(BadReply(*worker.life, "an offset outside of the slot"))
        await harness.until(lambda: harness.events("worker_exit"))
        assert harness.events("worker_exit")[0]["cause"] == "bad reply"
        await harness.until(ready(harness, "good"))

    run_in_harness(tmp_path, play)


def test_bytes_that_are_no_message_end_the_load_with_a_reason(tmp_path: Path) -> None:
    def talk_nonsense(child: Child) -> None:
        child.channel.send(b"\x00\x01")

    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = talk_nonsense
        await harness.until(lambda: harness.events("worker_exit"))
        assert "an invalid message" in harness.events("load_failed")[0]["text"]

    run_in_harness(tmp_path, play)


def test_a_stack_trace_on_the_crash_pipe_condemns_before_the_exit_and_is_not_killed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (worker,) = harness.keeper.workers()
        os.write(worker.crash, b"Fatal Python error: Segmentation fault\n\nCurrent thread\n")
        await harness.until(lambda: harness.gateway().received_of(Condemned))
        assert harness.gateway().received_of(Condemned)[0].code == "worker_crashed"
        assert not harness.keeper.sent_of(SignalChild)
        worker.process.send_signal(signal.SIGSEGV)
        await harness.until(lambda: harness.events("worker_exit"))
        assert harness.events("worker_exit")[0]["sig"] == signal.SIGSEGV

    run_in_harness(tmp_path, play)


def test_one_bad_model_stops_neither_the_start_nor_the_others(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        add_model(tmp_path, "odd", yaml="memory: 4 gigs\n")

        harness.keeper.script = lambda child: (fail_to_load if "/repo/bad/" in child.spawn.cwd else Child.serve)(child)
        await harness.until(lambda: harness.events("ready"))
        assert harness.state("good") == "ready"
        await harness.until(lambda: harness.state("bad") in ("backoff", "failed"))
        assert "the artefact is broken" in harness.events("load_failed", "bad")[0]["text"]

    run_in_harness(tmp_path, play, ("bad", "good"))


def test_texts_that_a_worker_reports_of_its_load_are_cut(tmp_path: Path) -> None:
    def rant(child: Child) -> None:
        child.send(Hello("worker", WIRE_VERSION, *child.life))
        child.send(LoadFailed("c" * 50_000, "t" * 50_000))
        child.process.kill()

    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = rant
        await harness.until(lambda: harness.events("worker_exit"))
        assert len(json.dumps(harness.events("load_failed")[0])) < 5000

    run_in_harness(tmp_path, play)


def test_a_model_whose_configuration_is_faulty_is_failed_with_its_reason(tmp_path: Path) -> None:
    add_model(tmp_path, "odd", yaml="memory: 4 gigs\n")

    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        route = next(each for each in harness.gateway().received_of(Route) if each.name == "odd")
        assert route.versions[0].state == "failed"
        assert route.versions[0].code == "model_failed"
        assert route.versions[0].reason.startswith("odd/mmsup.yaml:3: memory: is not valid")

    run_in_harness(tmp_path, play)


def test_a_model_that_is_named_and_not_there_is_an_event_and_a_failed_model(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (event,) = harness.events("load_failed")
        assert event["model"] == "nobody"
        assert "no repository holds this model" in event["text"]
        status = await harness.controller.api.handlers.handle("status", {}, lambda _: None)
        (model,) = [each for each in status["models"] if each["name"] == "nobody"]
        assert (model["state"], model["reason"]) == ("failed", event["text"])
        assert routes_of(harness, "nobody")[-1].versions[0].code == "model_failed"

    run_in_harness(tmp_path, play, control_mode="explicit", load_models=("good", "nobody"))


def test_a_model_of_which_nothing_is_left_after_a_restart_is_forgotten(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.state("bad") == "failed" and harness.controller.gateways.pool.are_up())
        await harness.kill_controller()
        shutil.rmtree(tmp_path / "repo" / "bad")
        await harness.start_controller()
        await harness.until(ready(harness, "good"))
        await harness.until(lambda: harness.state("bad") == "unknown")

    add_model(tmp_path, "bad", yaml="memroy: 1GiB\n")
    run_in_harness(tmp_path, play)


def test_warnings_of_configuration_are_logged_at_the_start_and_by_no_later_controller(tmp_path: Path) -> None:
    async def run() -> None:
        harness = ControllerHarness(tmp_path)
        harness.output = str(tmp_path / "output")
        (tmp_path / "repo" / "no model").mkdir()
        add_model(tmp_path, "early", yaml="batching: {delay: 1ms}\n")
        async with asyncio.timeout(60), harness:
            await harness.until(ready(harness, "good", "early"))
            await harness.kill_controller()
            await harness.start_controller()
            await harness.until(ready(harness, "good", "early"))

    asyncio.run(run())
    lines = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    said = [each for each in lines if each["event"] == "configuration"]
    assert [(each["level"], each["place"]) for each in said] == [
        ("warning", str(tmp_path / "repo")),
        ("warning", "early: batching"),
    ]


def test_at_most_two_load_at_a_time(tmp_path: Path) -> None:
    loading: list[int] = []

    async def play(harness: ControllerHarness) -> None:
        def script(child: Child) -> None:
            loading.append(len([each for each in harness.keeper.workers() if not each.received_of(AttachGateway)]))
            asyncio.get_running_loop().call_later(0.01, child.serve)

        harness.keeper.script = script
        await harness.until(ready(harness, *"abcdef"))
        assert max(loading) <= 2

    run_in_harness(tmp_path, play, tuple("abcdef"))


def test_a_reload_serves_from_the_old_until_the_new_is_ready(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (old,) = harness.keeper.workers()
        result = await harness.controller.models.loader.load("good")
        assert result["state"] == "ready"
        names = [type(each).__name__ for each in harness.gateway().received if not isinstance(each, Ping)]
        assert names.index("UnlinkWorker") > [at for at, name in enumerate(names) if name == "LinkWorker"][1]
        await harness.until(lambda: old.exited is not None and harness.events("worker_stopped"))
        assert not harness.events("worker_exit")

    run_in_harness(tmp_path, play)


def test_a_reload_that_fails_leaves_the_old_one_and_reports_why(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        (old,) = harness.keeper.workers()
        harness.keeper.script = fail_to_load
        with pytest.raises(MmsupError, match="failed to load 'good': the artefact is broken") as caught:
            await harness.controller.models.loader.load("good")
        assert caught.value.code == "load_failed"
        await harness.until(lambda: harness.keeper.workers() == [old])
        assert harness.state("good") == "ready"
        assert not harness.gateway().received_of(UnlinkWorker)

    run_in_harness(tmp_path, play)


def test_concurrent_loads_of_one_name_are_one_load(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        results = await asyncio.gather(*[harness.controller.models.loader.load("good") for _ in range(32)])
        assert {each["state"] for each in results} == {"ready"}
        assert len(harness.events("worker_spawn", "good")) == 1

    run_in_harness(tmp_path, play, control_mode="explicit")


def test_an_unload_answers_when_nothing_is_routed_and_then_drains(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        await harness.controller.models.loader.unload("good")
        received = harness.gateway().received
        assert [each for each in received if isinstance(each, Route)][-1].wanted is False
        assert any(isinstance(each, UnlinkWorker) for each in received)
        await harness.until(lambda: not harness.keeper.workers() and harness.events("worker_stopped"))
        assert not harness.events("worker_exit")
        assert not harness.keeper.sent_of(SignalChild)

    run_in_harness(tmp_path, play)


def test_an_unload_ends_a_load_under_way_with_conflict(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = ignore
        loading = asyncio.ensure_future(harness.controller.models.loader.load("good"))
        await harness.until(harness.keeper.workers)
        await harness.controller.models.loader.unload("good")
        with pytest.raises(MmsupError, match="unloaded meanwhile") as caught:
            await loading
        assert caught.value.code == "conflict"
        await harness.until(lambda: not harness.keeper.workers())
        harness.keeper.script = Child.serve
        assert (await harness.controller.models.loader.load("good"))["state"] == "ready"

    run_in_harness(tmp_path, play, control_mode="explicit")


def test_load_of_an_unknown_model_is_refused_in_the_words_clients_know(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        with pytest.raises(MmsupError, match="failed to load 'nope', failed to poll from model repository") as caught:
            await harness.controller.models.loader.load("nope")
        assert caught.value.code == "unknown_model"

    run_in_harness(tmp_path, play)


def test_in_poll_mode_clients_may_not_load(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        gateway = harness.gateway()
        for number, verb in enumerate(("load", "events", "index")):
            gateway.send(CommandRequest(number, verb, {"name": "good"} if verb == "load" else {}))
        await harness.until(lambda: len(gateway.received_of(CommandReply)) == 3)
        answers = sorted(gateway.received_of(CommandReply), key=lambda each: each.id)
        assert [each.code for each in answers] == ["forbidden", "forbidden", ""]
        assert answers[2].result == [{"name": "good", "version": "1", "state": "READY", "reason": ""}]

    run_in_harness(tmp_path, play, control_mode="poll")


def test_a_changed_model_is_reloaded_and_a_new_one_loaded_at_reload(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good", "calm"))
        (tmp_path / "repo" / "good" / "1" / "model.py").write_text("class Model: changed = True\n")
        add_model(tmp_path, "fresh")
        harness.from_keeper(ReloadRequested())
        await harness.until(lambda: harness.events("model_reloaded", "good"))
        await harness.until(ready(harness, "fresh", "good"))
        assert len(harness.events("worker_spawn", "calm")) == 1

    run_in_harness(tmp_path, play, ("good", "calm"))


def test_a_model_that_left_the_repository_is_unrouted(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good", "gone"))
        for each in ("1/model.py", "mmsup.yaml"):
            (tmp_path / "repo" / "gone" / each).unlink()
        (tmp_path / "repo" / "gone" / "1").rmdir()
        (tmp_path / "repo" / "gone").rmdir()
        harness.from_keeper(ReloadRequested())
        await harness.until(lambda: harness.gateway().received_of(Unroute))
        assert harness.state("gone") == "unknown"

    run_in_harness(tmp_path, play, ("good", "gone"))


def test_six_deaths_in_a_minute_open_the_breaker_of_that_model_alone(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        def die_when_ready(child: Child) -> None:
            child.serve()
            if "/repo/bad/" in child.spawn.cwd:
                child.process.kill()

        harness.controller.models.model_set.context.rng.uniform = lambda a, b: 0.0  # type: ignore[method-assign]  # no waiting here
        harness.keeper.script = die_when_ready
        await harness.until(lambda: harness.events("crash_loop"))
        assert len(harness.events("worker_exit", "bad")) == 6
        assert harness.state("bad") == "failed"
        await harness.until(ready(harness, "good"))
        await harness.until(lambda: routes_of(harness, "bad")[-1].versions[0].code == "crash_loop")

    run_in_harness(tmp_path, play, ("bad", "good"))


def test_a_dead_gateway_is_followed_by_one_that_gets_the_whole_state(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        first = harness.gateway()
        (worker,) = harness.keeper.workers()
        first.process.kill()
        await harness.until(lambda: harness.controller.gateways.pool.are_up() and first.exited)
        second = harness.gateway()
        assert second.life == (0, 2)
        assert [each.name for each in second.received_of(Route)] == ["good"]
        assert len(second.received_of(LinkWorker)) == 1
        await harness.until(lambda: len(worker.received_of(AttachGateway)) == 2)
        assert worker.received_of(AttachGateway)[1].identity.startswith(b"g0.2.")
        assert worker.exited is None
        assert harness.events("gateway_exit")[0]["gateway"] == 0

    run_in_harness(tmp_path, play)


def test_a_gateway_that_died_of_a_signal_without_a_name_is_followed_by_another(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        harness.gateway().process.send_signal(40)
        await harness.until(lambda: harness.events("gateway_exit"))
        assert harness.events("gateway_exit")[0]["text"] == "gateway 0 ended by signal SIG40"
        await harness.until(harness.controller.gateways.pool.are_up)

    run_in_harness(tmp_path, play)


def test_a_model_that_is_too_large_for_the_checkpoint_is_reported_once_and_served(tmp_path: Path) -> None:
    async def run() -> None:
        harness = ControllerHarness(tmp_path)
        harness.output = str(tmp_path / "output")
        for version in "12345":
            add_model(tmp_path, "large", version)
        noise = base64.b64encode(os.urandom(32 << 10)).decode()
        pbtxt = f'parameters {{ key: "noise" value {{ string_value: "{noise}" }} }}\nversion_policy {{ all {{}} }}\n'
        (tmp_path / "repo" / "large" / "config.pbtxt").write_text(pbtxt)
        async with asyncio.timeout(60), harness:
            await harness.until(ready(harness, "large", "good"))
            for worker in harness.keeper.workers():
                worker.process.kill()
            await harness.until(lambda: len(harness.events("worker_exit")) == 6)
            await harness.until(ready(harness, "large", "good"))
            assert [each.name for each in harness.saved().all_of(ModelRecord)] == ["good"]

    asyncio.run(run())
    lines = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    assert len([each for each in lines if each["event"] == "not_remembered"]) == 1


def test_a_new_controller_takes_over_living_processes_without_touching_them(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        before = {each.token for each in harness.keeper.workers()}
        gateway = harness.gateway()
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        assert {each.token for each in harness.keeper.workers()} == before
        assert harness.gateway() is gateway
        assert [type(each) for each in gateway.received].count(ConfigureGateway) == 2
        await harness.until(lambda: gateway.received_of(Synced)[-1].ready)
        assert harness.events("readopted")[0]["kept"] == 2
        assert not harness.events("worker_exit")
        assert len(harness.keeper.sent_of(Spawn)) == 3

    run_in_harness(tmp_path, play, ("a", "b"))


def test_a_gateway_is_not_synced_before_every_link_is_sent(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        gateway = harness.gateway()
        await harness.kill_controller()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        names = [type(each).__name__ for each in gateway.received]
        names = names[len(names) - names[::-1].index("ConfigureGateway") :]
        first = names.index("Synced")
        assert names[:first].count("LinkWorker") == 2
        assert "UnlinkWorker" not in names

    run_in_harness(tmp_path, play, ("a", "b"))


def test_a_worker_that_died_while_there_was_no_controller_is_recorded_and_replaced(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        (worker,) = harness.keeper.workers()
        await harness.kill_controller()
        worker.process.kill()
        await harness.keeper.deaths.wait()
        await harness.start_controller()
        await harness.until(ready(harness, "good"))
        assert len(harness.events("worker_exit")) == 1
        assert [each.life for each in harness.keeper.workers()] == [(1, 2)]

    run_in_harness(tmp_path, play)


def test_a_worker_that_became_ready_while_there_was_no_controller_serves(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = greet
        await harness.until(lambda: harness.state("good") == "loading")
        await harness.kill_controller()
        (child,) = harness.keeper.workers()
        child.serve()
        await harness.start_controller()
        await harness.until(ready(harness, "good"))
        assert harness.keeper.workers() == [child]

    run_in_harness(tmp_path, play)


def test_a_worker_whose_ready_was_lost_with_its_controller_is_restarted_and_nothing_is_counted(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = greet
        await harness.until(lambda: harness.state("good") == "loading")
        await harness.kill_controller()
        (child,) = harness.keeper.workers()
        child.page.set_activity(Activity.IDLE, time.monotonic_ns())
        harness.keeper.script = Child.serve
        await harness.start_controller()
        await harness.until(ready(harness, "good"))
        assert [each.life for each in harness.keeper.workers()] == [(1, 2)]
        assert not harness.events("worker_exit")

    run_in_harness(tmp_path, play)


def test_a_gateway_that_died_while_there_was_no_controller_is_followed_by_one_and_not_by_two(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        gateway = harness.gateway()
        await harness.kill_controller()
        gateway.process.kill()
        await harness.keeper.deaths.wait()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        await harness.controller.gateways.barriers.wait_until_applied(1.0)
        spawned = [each.token for each in harness.keeper.sent_of(Spawn) if each.token.startswith("gateway")]
        assert spawned == ["gateway.0.1", "gateway.0.2"]

    run_in_harness(tmp_path, play)


def test_a_command_for_a_dead_controller_is_not_carried_out_by_the_next(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        gateway = harness.gateway()
        await harness.kill_controller()
        gateway.send(Pong(1))
        gateway.send(CommandRequest(7, "unload", {"name": "good"}))  # its client got an error, or will
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        assert gateway.received_of(Ping)[-1].number == 1, "the Pong from before was taken for the answer"
        await harness.controller.gateways.barriers.wait_until_applied(1.0)
        assert harness.state("good") == "ready"
        assert not gateway.received_of(CommandReply)
        assert not harness.events("model_unloaded")

    run_in_harness(tmp_path, play)


def test_directories_of_workers_that_a_dead_controller_did_not_record_are_removed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        await harness.kill_controller()
        folder, socket, other = tmp_path / "state/scratch/w9.1", tmp_path / "run/w9.1", tmp_path / "run/other"
        folder.mkdir()
        for file in (folder / "something", socket, other):
            file.touch()
        await harness.start_controller()
        await harness.until(harness.controller.gateways.pool.are_up)
        await harness.until(lambda: not folder.exists())
        assert not socket.exists()
        assert other.exists()
        assert (tmp_path / "state/scratch/w1.1").is_dir(), "the folder of one that lives is gone"

    run_in_harness(tmp_path, play)


def test_a_reload_that_the_controller_did_not_survive_leaves_the_old_revision(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        (old,) = harness.keeper.workers()
        harness.keeper.script = greet
        loading = asyncio.ensure_future(harness.controller.models.loader.load("good"))
        await harness.until(lambda: len(harness.keeper.workers()) == 2)
        await harness.until(
            lambda: any(str(each.state) == "loading" for each in harness.controller.models.model_set.instances())
        )
        await harness.kill_controller()
        await asyncio.gather(loading, return_exceptions=True)
        await harness.start_controller()
        await harness.until(lambda: harness.keeper.workers() == [old])
        assert harness.state("good") == "ready"

    run_in_harness(tmp_path, play)


def test_a_child_that_no_record_knows_is_killed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        (stray,) = harness.keeper.workers()
        await harness.kill_controller()
        harness.keeper.checkpoint.clear()
        await harness.start_controller()
        await harness.until(lambda: stray.exited is not None)
        await harness.until(ready(harness, "good"))

    run_in_harness(tmp_path, play)


def test_a_checkpoint_that_cannot_be_read_is_said_and_not_dropped_in_silence(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good"))
        assert not harness.events("state_unreadable")
        await harness.kill_controller()
        harness.keeper.checkpoint["server"] = "of another version"
        await harness.start_controller()
        await harness.until(lambda: harness.events("state_unreadable"))
        assert "checkpoint of the controller before" in harness.events("state_unreadable")[0]["text"]
        await harness.until(ready(harness, "good"))

    run_in_harness(tmp_path, play)


def test_desired_state_survives_the_controller_and_a_crash_but_not_an_orderly_stop(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(ready(harness, "good", "other"))
        await harness.controller.models.loader.unload("good")
        await harness.until(lambda: len(harness.keeper.workers()) == 1)
        await harness.kill_controller()
        harness.keeper.checkpoint.clear()  # as after a crash of everything
        await harness.start_controller()
        await harness.until(ready(harness, "other"))
        assert harness.state("good") == "stopped"
        harness.from_keeper(TerminateRequested())
        await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))
        assert not (tmp_path / "state" / "wanted.json").exists()

    run_in_harness(tmp_path, play, ("good", "other"))


def test_an_orderly_stop_is_not_ready_drained_stopped_and_then_finished(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        gateway = harness.gateway()
        harness.from_keeper(TerminateRequested())
        await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))
        assert harness.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(0)]
        names = [type(each).__name__ for each in gateway.received]
        last_synced = max(at for at, name in enumerate(names) if name == "Synced")
        assert last_synced < names.index("DrainGateway") < names.index("UnlinkWorker")
        assert not gateway.received_of(Synced)[-1].ready
        assert harness.events("worker_stopped")
        assert not harness.events("worker_exit")
        assert not harness.keeper.workers()

    run_in_harness(tmp_path, play)


def test_a_stop_waits_for_work_in_flight_also_after_a_gateway_has_died(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        harness.gateway().process.kill()
        await harness.until(lambda: harness.events("gateway_exit") and harness.controller.gateways.pool.are_up())
        await finish_only_when_drained(harness)

    run_in_harness(tmp_path, play)


def test_a_controller_that_follows_one_that_was_draining_waits_for_work_in_flight(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        await harness.until(lambda: harness.events("ready"))
        harness.keeper.is_busy = True
        harness.from_keeper(TerminateRequested())
        await harness.until(lambda: harness.gateway().received_of(DrainGateway))
        await harness.kill_controller()
        harness.gateway().received.clear()
        await harness.start_controller(stopping=True)
        await finish_only_when_drained(harness)

    run_in_harness(tmp_path, play)


async def finish_only_when_drained(harness: ControllerHarness) -> None:
    harness.keeper.is_busy = True
    gateway = harness.gateway()
    harness.from_keeper(TerminateRequested())
    await harness.until(lambda: gateway.received_of(DrainGateway))
    await harness.controller.gateways.barriers.wait_until_applied(1.0)
    assert not gateway.received_of(UnlinkWorker)
    gateway.send(GatewayDrained())
    await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))


def test_a_server_with_exit_on_error_stops_when_a_model_fails_at_the_start(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness) -> None:
        harness.keeper.script = fail_to_load
        await harness.until(lambda: harness.keeper.sent_of(ShutdownFinished))
        assert harness.keeper.sent_of(ShutdownFinished) == [ShutdownFinished(1)]

    run_in_harness(tmp_path, play, exit_on_error=True)


def test_nothing_is_left_open_when_a_controller_closes(tmp_path: Path) -> None:
    async def run() -> None:
        async with ControllerHarness(tmp_path, ("a", "b")) as harness:
            await harness.until(lambda: harness.events("ready"))

    def still_open() -> int:
        gc.collect()  # what earlier tests have let go of is not to go in between
        return len(os.listdir("/proc/self/fd"))

    asyncio.run(run())
    before = still_open()
    asyncio.run(run())
    assert still_open() == before
