"""The shapes of answers, which people's tools rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from controller_double import ControllerHarness
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.specs import Metadata
from mmsup.supervisor.api.status import StatusViews

Ask = Callable[..., Awaitable[Any]]

pytestmark = pytest.mark.slow


def ask_house(tmp_path: Path, play: Callable[[ControllerHarness, Ask], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), ControllerHarness(tmp_path, ("bert", "other"), **options) as harness:
            await harness.until(lambda: harness.events("ready"))
            said: list[dict[str, Any]] = []

            async def ask(verb: str, **arguments: Any) -> Any:
                result = await harness.controller.api.handlers.handle(verb, arguments, said.append)
                return (said, result) if verb == "load" else result

            await play(harness, ask)

    asyncio.run(run())


def test_status_is_the_object_that_was_agreed(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        status = await ask("status")
        assert {"version", "ready", "reason", "uptime_s", "isolation", "addresses"} <= set(status)
        assert set(status["keeper"]) == {"pid"}
        assert set(status["controller"]) == {"pid", "generation"}
        assert status["brain"] == status["controller"]
        assert set(status["gateways"][0]) == {"pid", "generation", "http"}
        assert status["addresses"] == {"http": "127.0.0.1:1"}
        model = status["models"][0]
        assert (model["name"], model["state"], model["reason"], model["versions"]) == (
            "bert",
            "ready",
            "",
            {"1": "ready"},
        )
        assert set(model["instances"][0]) == {
            "id", "version", "pid", "generation", "state", "activity", "restarts", "memory_bytes", "sequences", "start",
        }  # fmt: skip

    ask_house(tmp_path, play)


def test_list_and_ps_have_a_row_for_each(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        rows = (await ask("list"))["models"]
        assert [each["name"] for each in rows] == ["bert", "other"]
        assert set(rows[0]) == {
            "name", "wanted", "state", "reason", "engine", "versions", "instances", "last_use_s", "cold_start_s",
            "group",
        }  # fmt: skip
        processes = (await ask("ps"))["processes"]
        assert [each["role"] for each in processes] == ["keeper", "brain", "gateway", "worker", "worker"]
        assert len({frozenset(each) for each in processes}) == 1
        assert set(processes[0]) == {
            "role", "id", "model", "version", "pid", "generation", "state", "activity", "restarts",
            "memory_bytes", "memory_cap_bytes", "sequences", "uptime_s", "requests", "seat", "start",
        }  # fmt: skip

    ask_house(tmp_path, play)


def test_show_has_specs_metadata_errors_and_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller_double.METADATA", Metadata("python", 8, (), (), decoupled=True))

    async def play(harness: ControllerHarness, ask: Ask) -> None:
        shown = await ask("show", name="bert")
        assert shown["specs"][0]["version"] == "1"
        assert shown["metadata"]["platform"] == "python"
        served = shown["specs"][0]
        assert (served["max_batch_size"], served["decoupled"]) == (8, True), "what its code has added"
        assert [each["event"] for each in shown["story"]] == ["worker_spawn", "worker_ready"]
        assert shown["faults"] == []

    ask_house(tmp_path, play)


def test_load_has_progress_and_a_result(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        said, result = await ask("load", name="bert")
        assert said == [{"progress": "version 1: loading"}]
        assert set(result) == {"name", "state", "versions", "seconds"}
        assert (result["name"], result["state"], result["versions"]) == ("bert", "ready", {"1": "ready"})

    ask_house(tmp_path, play)


def test_the_index_lists_what_was_never_loaded_by_name_only(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        rows = await ask("index")
        assert rows[0] == {"name": "bert", "version": "1", "state": "READY", "reason": ""}
        assert rows[1] == {"name": "other"}
        assert await ask("index", ready=True) == rows[:1]
        await ask("unload", name="bert")
        assert (await ask("index"))[0] == {
            "name": "bert", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded",
        }  # fmt: skip

    ask_house(tmp_path, play, control_mode="explicit", load_models=("bert",))


def test_logs_and_events_are_what_was_written(tmp_path: Path) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        harness.controller.context.state_dir.model_output("bert").append("1.1", b"one\ntwo\n")
        assert await ask("logs", name="bert", lines=1) == {"lines": ["two"]}
        harness.controller.context.state_dir.model_output("_gateways").append("1", b"three\n")
        assert await ask("logs", name="_gateways") == {"lines": ["three"]}
        with pytest.raises(MmsupError, match=r"'_controller' has no log: name a model, or _gateways; .*`mmsup serve`"):
            await ask("logs", name="_controller")
        events = (await ask("events", model="bert", count=1))["events"]
        assert [each["event"] for each in events] == ["worker_ready"]
        assert set(events[0]) >= {"time", "event", "model", "instance", "generation", "text"}

    ask_house(tmp_path, play)


@pytest.mark.parametrize(
    ("verb", "arguments", "code"),
    [
        ("fly", {}, "bad_request"),
        ("show", {}, "bad_request"),
        ("show", {"name": 3}, "bad_request"),
        ("show", {"name": "nope"}, "unknown_model"),
        ("unload", {"name": "nope"}, "unknown_model"),
        ("logs", {"name": "nope"}, "unknown_model"),
        ("logs", {"name": "_nope"}, "unknown_model"),
        ("events", {"model": "nope"}, "unknown_model"),
        ("events", {"count": -1}, "bad_request"),
        ("events", {"count": True}, "bad_request"),
        ("quarantine", {"model": "nope"}, "unknown_model"),
        ("quarantine_clear", {"model": 3}, "bad_request"),
        ("index", {"ready": "yes"}, "bad_request"),
        ("load", {"name": "bert", "parameters": {"file:1/x": ""}}, "bad_request"),
        ("load", {"name": "bert", "config": "{"}, "bad_request"),
    ],
)
def test_errors_of_the_caller_are_the_callers(tmp_path: Path, verb: str, arguments: dict[str, Any], code: str) -> None:
    async def play(harness: ControllerHarness, ask: Ask) -> None:
        with pytest.raises(MmsupError) as caught:
            await ask(verb, **arguments)
        assert caught.value.code == code
        assert harness.state("bert") == "ready"

    ask_house(tmp_path, play)


def test_an_internal_error_is_answered_and_the_server_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: StatusViews) -> None:
        raise KeyError("a bug")

    async def play(harness: ControllerHarness, ask: Ask) -> None:
        monkeypatch.setattr(StatusViews, "ps", fail)
        with pytest.raises(MmsupError, match="a fault of the server's own in 'ps'") as caught:
            await ask("ps")
        assert caught.value.code == "internal"
        assert (await ask("status"))["ready"] is True

    ask_house(tmp_path, play)
