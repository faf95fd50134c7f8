from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from control_double import ControlDouble, Request, done
from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.main import main
from mmsup.supervisor.config.config_error import InvalidValue
from mmsup.supervisor.config.server_options import CONFIG_VARIABLE, SERVER_OPTIONS, ServerOption

RUNTIME_DIR: Final = "MMSUP_RUNTIME_DIR"
ARGUMENT: Final = "m"
NEEDED_OPTIONS: Final = {"infer": ["--data", "{}"]}
VALUES: Final = {
    "host": ("127.0.0.2", "127.0.0.3"),
    "metrics_host": ("127.0.0.2", "127.0.0.3"),
    "control_mode": ("poll", "explicit"),
    "load_models": ("one", "two"),
    "front": ("fast", "plain"),
    "grpc_front": ("own", "grpcio"),
    "link": ("pair", "zeromq"),
    "zygotes": ("auto", "eager"),
    "log_format": ("json", "default"),
}
"""By field of Settings: a value for the environment, one for the flag."""
PATHS: Final = ("/env", "/flag")
GUESSES: Final = (("5", "6"), ("20000000", "30000000"), ("5s", "6s"), ("true", "false"))
"""For all other options: the first pair that is valid."""


def leaf_commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is not a group, with its path."""

    def walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if not isinstance(command, click.Group):
            yield path, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk((*path, name), found)

    return walk((), main)


LEAVES: Final = dict(leaf_commands())
CTL: Final = [path for path in LEAVES if path[0] == "ctl"]


def usable(path: tuple[str, ...]) -> list[str]:
    """The arguments without which the command is refused."""
    count = sum(isinstance(each, click.Argument) and each.required for each in LEAVES[path].params)
    return [ARGUMENT] * count + NEEDED_OPTIONS.get(path[-1], [])


def answer(request: Request) -> list[object]:
    return [done({"why": {}, "lines": [], "events": []} if request["verb"] != "status" else {"addresses": {}})]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("path", CTL, ids=" ".join)
def test_ctl_reaches_the_server_of_its_flag_and_not_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...], position: str
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    monkeypatch.setenv(RUNTIME_DIR, str(other))
    flag = ["--runtime-dir", str(mine)]
    group, command = path[:1], path[1:]
    line = [*group, *flag, *command] if position == "before" else [*path, *flag]
    with ControlDouble(mine, answer) as asked, ControlDouble(other, answer) as not_asked:
        CliRunner().invoke(main, [*line, *usable(path), "--json"])
    assert asked.requests
    assert not not_asked.requests


def test_ctl_without_a_flag_reaches_the_server_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNTIME_DIR, str(tmp_path))
    with ControlDouble(tmp_path, answer) as asked:
        CliRunner().invoke(main, ["ctl", "status", "--json"])
    assert asked.requests


@pytest.mark.parametrize("before", [True, False])
def test_an_empty_runtime_dir_is_refused_and_not_replaced_by_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, before: bool
) -> None:
    monkeypatch.setenv(RUNTIME_DIR, str(tmp_path))
    flag = ["--runtime-dir", ""]
    with ControlDouble(tmp_path, answer) as asked:
        result = CliRunner().invoke(main, ["ctl", *flag, "status"] if before else ["ctl", "status", *flag])
    assert result.exit_code == exit_codes.USAGE
    assert "--runtime-dir is empty" in result.stderr
    assert not asked.requests


@pytest.mark.parametrize("option", SERVER_OPTIONS, ids=lambda option: option.flag)
def test_every_flag_of_the_server_wins_over_its_variable(tmp_path: Path, option: ServerOption) -> None:
    values = PATHS if option.path else VALUES.get(option.field)
    in_environment, in_flag = values or next(each for each in GUESSES if _takes(option, each[0]))
    flags = [f"--{option.flag}", in_flag]
    if option.field == "load_models":
        flags += ["--model-control-mode", "explicit"]
    if option.field != "repositories":
        flags += ["--model-repository", str(tmp_path)]
    result = CliRunner().invoke(main, ["check", "--explain", "--json", *flags], env={option.variable: in_environment})
    (row,) = [each for each in json.loads(result.stdout)["options"] if each["option"] == option.key]
    assert row["source"] == "flag"
    assert row["value"] == json.loads(json.dumps(option.parse(in_flag)))
    assert option.parse(in_flag) != option.parse(in_environment)


def _takes(option: ServerOption, text: str) -> bool:
    try:
        option.parse(text)
    except InvalidValue:
        return False
    return True


def test_an_empty_config_flag_is_no_file_whatever_the_environment_names(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("id: from-file\n")
    line = ["check", "--explain", "--json", "--model-repository", str(tmp_path)]
    environment = {CONFIG_VARIABLE: str(file)}
    assert "from-file" in CliRunner().invoke(main, line, env=environment).stdout
    assert "from-file" not in CliRunner().invoke(main, [*line, "--config", ""], env=environment).stdout


@pytest.mark.parametrize(("flag", "is_refused"), [("--insecure=false", True), ("--insecure=true", False)])
def test_the_flag_insecure_wins_over_its_variable(tmp_path: Path, *, flag: str, is_refused: bool) -> None:
    result = CliRunner().invoke(
        main,
        ["check", "--model-repository", str(tmp_path), "--host", "0.0.0.0", flag],
        env={"MMSUP_INSECURE": "true" if is_refused else "false"},
    )
    assert ("can be reached from other machines" in result.stdout) is is_refused


@pytest.mark.parametrize("path", CTL, ids=" ".join)
def test_click_reads_no_variable_for_a_flag_that_stands_before_and_after_the_command(path: tuple[str, ...]) -> None:
    assert [each.name for each in LEAVES[path].params if each.envvar] == []
