from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

import mmsup
from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.main import COMMANDS, main

HEAVY = {
    "aiohttp",
    "google",
    "ml_dtypes",
    "msgpack",
    "numpy",
    "onnxruntime",
    "prometheus_client",
    "psutil",
    "rich",
    "torch",
    "yaml",
    "zmq",
}


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules in memory after the command has run."""
    program = (
        "import sys\n"
        "from mmsup.supervisor.cli.main import main\n"
        f"main({list(arguments)!r}, standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return {name.partition(".")[0] for name in output.splitlines()[-1].split()}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--version",), ("ctl", "--help"), ("ctl", "status", "--help")])
def test_the_command_line_starts_without_anything_heavy(arguments: tuple[str, ...]) -> None:
    assert not HEAVY & loaded_by(*arguments)


@pytest.mark.slow
def test_the_help_of_serve_needs_no_more_than_yaml() -> None:
    assert HEAVY & loaded_by("serve", "--help") <= {"yaml"}


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.stdout == f"mmsup {mmsup.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *[[name, "--help"] for name in COMMANDS]])
def test_every_command_has_help_with_an_example(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments, prog_name="mmsup")
    assert result.exit_code == exit_codes.SUCCESS
    assert "Example:  mmsup" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["ctl"], ["ctl", "devices"], ["ctl", "quarantine"]])
def test_no_sentence_in_a_list_of_commands_is_cut(arguments: list[str]) -> None:
    shown = CliRunner().invoke(main, [*arguments, "--help"], terminal_width=80).stdout
    assert "Commands:" in shown
    assert "..." not in shown.partition("Commands:")[2]


def test_an_unknown_command_is_wrong_usage() -> None:
    assert CliRunner().invoke(main, ["serv"]).exit_code == exit_codes.USAGE


@pytest.mark.slow
def test_a_shell_can_ask_for_completions() -> None:
    environ = {"_MMSUP_COMPLETE": "bash_complete", "COMP_WORDS": "mmsup ctl lo", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "mmsup.supervisor.cli"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout
    assert {line.partition(",")[2] for line in output.split()} == {"load", "logs"}
