from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mmsup.ipc import exit_codes
from mmsup.supervisor.cli.serve.command import KEEPER_MODULE, serve
from mmsup.supervisor.cli.serve.exposure import exposure_error, is_loopback
from mmsup.supervisor.config.settings import Settings

Executed = list[tuple[list[str], Settings]]


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Executed:
    """The commands that were executed, and the settings in the descriptor that each names."""
    seen: Executed = []

    def execv(program: str, argv: list[str]) -> None:
        fd = int(argv[-1].removeprefix("settings="))
        assert os.get_inheritable(fd)
        with open(fd, encoding="utf-8") as file:
            seen.append(([program, *argv], Settings.from_json(file.read())))

    monkeypatch.setattr("os.execv", execv)
    return seen


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(serve, list(arguments), prog_name="mmsup serve", env=env)


def test_serve_becomes_the_keeper_with_the_settings_in_a_descriptor(tmp_path: Path, executed: Executed) -> None:
    run("--model-repository", str(tmp_path), "--http-port=0", "--gateways", "2")
    ((command, settings),) = executed
    assert command[-4:-1] == ["-P", "-m", KEEPER_MODULE]
    assert settings.repositories == (str(tmp_path),)
    assert (settings.http_port, settings.gateways) == (0, 2)


def test_a_flag_wins_over_the_environment_which_wins_over_the_file(tmp_path: Path, executed: Executed) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(f"model_repository: {tmp_path}\nhttp_port: 1\ngateways: 3\nid: file\n")
    environ = {"MMSUP_HTTP_PORT": "2", "MMSUP_GATEWAYS": "4"}
    run("--config", str(file), "--http-port", "0", env=environ)
    ((_, settings),) = executed
    assert (settings.http_port, settings.gateways, settings.server_name) == (0, 4, "file")


def test_all_faults_are_printed_together_and_nothing_starts(executed: Executed) -> None:
    result = run("--http-port", "x\x1b[2J", "--gateways=0", "--model-control-mode", "sometimes")
    assert result.exit_code == exit_codes.USAGE
    places = {line.split(": ")[1] for line in result.stderr.splitlines()}
    assert places == {"--http-port", "--gateways", "--model-control-mode", "--model-repository"}
    assert "\x1b" not in result.stderr
    assert not executed


@pytest.mark.parametrize(
    "address", ["--host=0.0.0.0", "--http-address=::", "--metrics-address=192.0.2.1", "--host=gpu7"]
)
def test_an_open_address_is_refused_without_a_word_of_agreement(
    tmp_path: Path, executed: Executed, address: str
) -> None:
    result = run("--model-repository", str(tmp_path), address)
    assert result.exit_code == exit_codes.USAGE
    assert "--insecure" in result.stderr
    assert not executed


@pytest.mark.parametrize("agreement", ["--insecure", "--insecure=true"])
def test_an_open_address_is_bound_where_the_operator_agreed(tmp_path: Path, executed: Executed, agreement: str) -> None:
    run("--model-repository", str(tmp_path), "--host=0.0.0.0", agreement)
    assert executed[0][1].host == "0.0.0.0"


def test_an_open_address_for_metrics_that_is_not_served_does_not_matter() -> None:
    settings = Settings(("m",), "r", "s", metrics_host="0.0.0.0", metrics_port=-1)
    assert exposure_error(settings) == ""


def test_an_open_address_for_grpc_needs_agreement_too_if_grpc_is_served() -> None:
    settings = Settings(("m",), "r", "s", grpc_host="0.0.0.0")
    assert "--insecure" in exposure_error(settings)
    assert exposure_error(replace(settings, grpc_port=-1)) == ""


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(host: str, private: bool) -> None:
    assert is_loopback(host) is private


def test_flags_without_effect_are_warned_about_and_do_not_stop_the_start(tmp_path: Path, executed: Executed) -> None:
    result = run("--model-repository", str(tmp_path), "--trace-config", "x")
    assert result.stderr == "mmsup: warning: --trace-config: it has no effect here\n"
    assert len(executed) == 1


def test_a_warning_of_the_environment_is_said_and_does_not_stop_the_start(tmp_path: Path, executed: Executed) -> None:
    result = run("--model-repository", str(tmp_path), env={"MMSUP_HTTP_PROT": "8000"})
    assert result.stderr.startswith("mmsup: warning: MMSUP_HTTP_PROT: ")
    assert result.stderr.count("\n") == 1
    assert len(executed) == 1


@pytest.mark.parametrize("kind", ["gone", "file"])
def test_a_repository_that_is_no_folder_ends_with_2_and_says_which(
    tmp_path: Path, executed: Executed, kind: str
) -> None:
    (tmp_path / "file").touch()
    result = run("--model-repository", str(tmp_path), "--model-repository", str(tmp_path / kind))
    assert result.exit_code == exit_codes.USAGE
    assert result.stderr.startswith(f"mmsup: the model repository {tmp_path / kind} cannot be read: No")
    assert result.stderr.count("\n") == 1
    assert not executed


def test_an_unknown_flag_ends_with_2_and_the_nearest_name(executed: Executed) -> None:
    result = run("--modle-repository", "x")
    assert result.exit_code == exit_codes.USAGE
    assert "--model-repository" in result.stderr
    assert not executed
