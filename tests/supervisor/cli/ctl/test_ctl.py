from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from control_double import ControlDouble, Request, done, refused
from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.ctl.control_client import ServerRefused
from mmsup.supervisor.cli.ctl.group import ctl
from mmsup.supervisor.cli.ctl.inference_client import InferenceClient

EVENT = {"time": "2025-01-02T03:04:05+00:00", "event": "worker_exit", "model": "m", "text": "killed by SIGKILL"}
ANSWERS: dict[str, Any] = {
    "status": {"version": "0.1.0", "ready": True, "models": [], "addresses": {}},
    "list": {"models": [{"name": "m", "state": "ready"}]},
    "ps": {"processes": [{"role": "worker", "id": 1, "model": "m", "version": "1"}]},
    "load": {"name": "m", "state": "ready", "versions": {"1": "ready"}, "seconds": 0.81},
    "unload": {"name": "m", "state": "stopped", "versions": {}, "seconds": 0.1},
    "show": {"name": "m", "state": "ready"},
    "logs": {"lines": ["one", "two\x1b[2J"]},
    "events": {"events": [EVENT]},
    "why": {"model": "m", "sentences": ["m: died\x1b[2J"], "deaths": [{"cause": "oom"}], "bundle": {"number": 4}},
    "upgrade": {"keeper": "renewed", "followed": 3, "seconds": 4.5},
    "quarantine": {"requests": [{"model": "m", "version": "1", "state": "blocked", "deaths": 2, "fingerprint": "0a"}]},
    "quarantine_clear": {"model": "", "cleared": 1},
    "devices": {"devices": [{"device": "cuda:0", "uuid": "GPU-a", "set_aside": True, "reason": "met faults"}]},
    "devices_release": {"released": ["GPU-m"]},
}
COMMANDS = (
    ["status"],
    ["list"],
    ["ps"],
    ["load", "m"],
    ["unload", "m"],
    ["show", "m"],
    ["logs", "m"],
    ["events"],
    ["why", "m"],
    ["upgrade"],
    ["quarantine", "list"],
    ["quarantine", "list", "m"],
    ["quarantine", "clear"],
    ["quarantine", "clear", "m"],
    ["devices", "list"],
    ["devices", "release", "cuda:0"],
)


def answer(request: Request) -> Iterable[object]:
    return [done(ANSWERS[request["verb"]])]


def run(directory: Path, *arguments: str, before: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(ctl, [*before, *arguments, "--runtime-dir", str(directory)], prog_name="mmsup ctl")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_the_servers_object_with_json(tmp_path: Path, command: list[str]) -> None:
    with ControlDouble(tmp_path, answer):
        result = run(tmp_path, *command, "--json")
    assert result.exit_code == exit_codes.SUCCESS, result.stderr
    verb = "_".join(command[:2])
    assert json.loads(result.stdout) == ANSWERS[verb if verb in ANSWERS else command[0]]
    assert not result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_something_without_json(tmp_path: Path, command: list[str]) -> None:
    with ControlDouble(tmp_path, answer):
        result = run(tmp_path, *command)
    assert result.exit_code == exit_codes.SUCCESS, result.stderr
    assert "m" in result.stdout or command in (["logs", "m"], ["upgrade"])


@pytest.mark.parametrize("command", [*COMMANDS, ["infer", "m", "--data", "{}"]])
def test_every_command_exits_4_without_a_server(tmp_path: Path, command: list[str]) -> None:
    result = run(tmp_path, *command)
    assert result.exit_code == exit_codes.NO_SERVER
    assert str(tmp_path) in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("command", [*COMMANDS, ["infer", "m", "--data", "{}"]])
def test_every_command_exits_1_with_the_servers_reason(tmp_path: Path, command: list[str]) -> None:
    with ControlDouble(tmp_path, lambda _: [refused("load_failed", "'m' failed\nin \x1b[31mtwo lines")]):
        result = run(tmp_path, *command, "--json")
    assert result.exit_code == exit_codes.REFUSED
    assert result.stderr == "mmsup: 'm' failed\nmmsup: in \\x1b[31mtwo lines\n"
    assert not result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["load"],
        ["show", "a", "b"],
        ["list", "--wrong"],
        ["nothing"],
        ["logs", "m", "--lines", "-1"],
        ["infer", "m"],
        ["quarantine", "clear", "a", "b"],
        ["quarantine", "lift"],
    ],
)
def test_wrong_usage_exits_2_before_a_request_is_sent(tmp_path: Path, command: list[str]) -> None:
    assert run(tmp_path, *command).exit_code == exit_codes.USAGE


def commands(group: click.Group = ctl, before: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield from commands(command, f"{name} ") if isinstance(command, click.Group) else (before + name,)


@pytest.mark.parametrize("name", [*commands()])
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(ctl, [*name.split(), "--help"])
    assert result.exit_code == exit_codes.SUCCESS
    assert f"Example:  mmsup ctl {name}" in result.stdout
    assert "--json" in result.stdout


def test_arguments_reach_the_server_and_options_left_out_do_not(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, answer) as server:
        run(tmp_path, "load", "m", "--config", '{"max_batch_size": 4}')
        run(tmp_path, "logs", "m", "--lines", "5")
        run(tmp_path, "events")
        run(tmp_path, "events", "m", "-n", "3")
        run(tmp_path, "quarantine", "list")
        run(tmp_path, "quarantine", "clear", "m")
    assert [each["arguments"] for each in server.requests] == [
        {"name": "m", "config": '{"max_batch_size": 4}'},
        {"name": "m", "lines": 5},
        {},
        {"model": "m", "count": 3},
        {},
        {"model": "m"},
    ]


def test_progress_of_a_load_goes_to_standard_error_alone(tmp_path: Path) -> None:
    lines = [{"progress": "importing onnxruntime"}, {"progress": "warming \x1bup"}, done(ANSWERS["load"])]
    with ControlDouble(tmp_path, lambda _: lines):
        result = run(tmp_path, "load", "m")
    assert result.stderr == "importing onnxruntime\nwarming \\x1bup\n"
    assert result.stdout == "m: ready after 0.8s (1 ready)\n"


def test_log_lines_are_made_safe_unless_raw_is_asked_for(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, answer):
        assert run(tmp_path, "logs", "m").stdout == "one\ntwo\\x1b[2J\n"
        assert run(tmp_path, "logs", "m", "--raw").stdout == "one\ntwo\x1b[2J\n"


def test_a_model_without_output_is_said_to_have_printed_nothing(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, lambda _: [done({"lines": []})]):
        plain, as_json = run(tmp_path, "logs", "m"), run(tmp_path, "logs", "m", "--json")
    assert (plain.stdout, plain.stderr) == ("", "m has printed nothing\n")
    assert (json.loads(as_json.stdout), as_json.stderr) == ({"lines": []}, "")


def test_following_prints_as_it_comes_until_the_server_goes(tmp_path: Path) -> None:
    stream: dict[str, list[object]] = {
        "events": [{"progress": "", "event": EVENT}, {"progress": "", "event": {**EVENT, "text": "again"}}],
        "logs": [{"progress": "", "line": "one"}],
    }
    with ControlDouble(tmp_path, lambda request: stream[request["verb"]]) as server:
        events = run(tmp_path, "events", "--follow", "--json")
        lines = run(tmp_path, "logs", "m", "-f")
    assert [json.loads(each)["text"] for each in events.stdout.splitlines()] == ["killed by SIGKILL", "again"]
    assert lines.stdout == "one\n"
    assert events.exit_code == lines.exit_code == exit_codes.REFUSED
    assert all(each["arguments"]["follow"] is True for each in server.requests)


def test_the_directory_is_found_by_option_then_environment(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, answer):
        by_option = CliRunner().invoke(ctl, ["--runtime-dir", str(tmp_path), "list", "--json"])
        by_environment = CliRunner().invoke(ctl, ["list", "--json"], env={"MMSUP_RUNTIME_DIR": str(tmp_path)})
        nearest = run(tmp_path, "list", "--json", before=("--runtime-dir", "/nowhere"))
    assert by_option.exit_code == by_environment.exit_code == nearest.exit_code == exit_codes.SUCCESS


def test_a_configuration_comes_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"max_batch_size": 8}')
    with ControlDouble(tmp_path, answer) as server:
        assert run(tmp_path, "load", "m", "--config", f"@{file}").exit_code == exit_codes.SUCCESS
    assert server.requests[0]["arguments"]["config"] == '{"max_batch_size": 8}'


@pytest.mark.parametrize("config", ["{", "[1]", "@/nowhere/at/all"])
def test_a_broken_configuration_is_wrong_usage(tmp_path: Path, config: str) -> None:
    assert run(tmp_path, "load", "m", "--config", config).exit_code == exit_codes.USAGE


def test_infer_without_an_address_says_so(tmp_path: Path) -> None:
    with ControlDouble(tmp_path, answer):
        result = run(tmp_path, "infer", "m", "--data", "{}")
    assert result.exit_code == exit_codes.REFUSED
    assert "no HTTP address" in result.stderr


def test_infer_on_an_unloaded_model_names_the_command_that_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ServerRefused("unknown_model", "Request for unknown model: 'm' has no available versions")

    monkeypatch.setattr(InferenceClient, "request", refuse)
    with ControlDouble(tmp_path, lambda _: [done({"addresses": {"http": "127.0.0.1:1"}})]):
        result = run(tmp_path, "infer", "m", "--data", "{}")
    assert result.exit_code == exit_codes.REFUSED
    assert result.stderr.endswith("has no available versions: load it with `mmsup ctl load m`\n")


def test_a_bundle_goes_to_a_private_file_or_to_standard_output_alone(tmp_path: Path) -> None:
    file = tmp_path / "bundle.json"
    with ControlDouble(tmp_path, answer):
        to_file = run(tmp_path, "why", "m", "--bundle", str(file))
        to_output = run(tmp_path, "why", "m", "--bundle", "-")
        nowhere = run(tmp_path, "why", "m", "--bundle", str(tmp_path / "no" / "folder"))
    assert "m: died\\x1b[2J" in to_file.stdout
    assert json.loads(file.read_text()) == json.loads(to_output.stdout) == {"number": 4}
    assert file.stat().st_mode & 0o777 == 0o600
    assert nowhere.exit_code == exit_codes.REFUSED


def test_without_a_death_the_export_of_a_bundle_fails(tmp_path: Path) -> None:
    result: dict[str, Any] = {"model": "m", "sentences": ["No worker of m has died."], "deaths": [], "bundle": None}
    with ControlDouble(tmp_path, lambda _: [done(result)]):
        plain = run(tmp_path, "why", "m")
        exported = run(tmp_path, "why", "m", "--bundle", "-")
    assert (plain.exit_code, plain.stdout) == (exit_codes.SUCCESS, "No worker of m has died.\n")
    assert exported.exit_code == exit_codes.REFUSED
    assert not exported.stdout
