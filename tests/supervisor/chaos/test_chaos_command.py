"""The command line of `mmsup chaos`: usage errors, and which libraries it loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from mmsup.ipc import exit_codes
from mmsup.supervisor.chaos.command import chaos
from mmsup.supervisor.chaos.plan.catalog import FAULTS

URL = ("--url", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--seconds", "5"), "--seconds must be at least"),
        (("--rate", "0"), "--rate must be above 0"),
        (("--models", "1"), "--models at least 2"),
        (("--every", "3s..1s"), "--every is two durations"),
        (("--every", "soon"), "is not a duration"),
        (("--faults", "sevg"), "'sevg' is no fault"),
        (("--victim", "a"), "go with --url"),
        (("--faults", "kill_front"), "kill_front is for a server with --grpc-front grpcio"),
        (("--faults", "kill_front", "--grpc-front", "own"), "kill_front is for a server with --grpc-front grpcio"),
        ((*URL, "--yes-break-it", "--victim", "a", "--grpc-front", "own"), "--grpc-front is for a server that chaos"),
        ((*URL, "--yes-break-it", "--victim", "a", "--with-keeper"), "somebody has to start it again"),
        ((*URL, "--victim", "a"), "say --yes-break-it"),
        ((*URL, "--yes-break-it"), "at least one --victim"),
        (("--url", "ftp://x", "--yes-break-it", "--victim", "a"), "--url is http://HOST:PORT"),
    ],
)
def test_wrong_usage_is_refused_before_a_fault_is_injected(arguments: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(chaos, arguments)
    assert result.exit_code == exit_codes.USAGE
    assert text in result.output


def test_all_faults_are_listed() -> None:
    result = CliRunner().invoke(chaos, ["--faults", "list"])
    assert result.exit_code == exit_codes.SUCCESS
    assert [line.split()[0] for line in result.output.splitlines()] == [each.name for each in FAULTS]


def test_a_runtime_directory_without_a_server_is_an_error() -> None:
    arguments = [*URL, "--yes-break-it", "--victim", "a", "--runtime-dir", "/nonexistent"]
    result = CliRunner().invoke(chaos, arguments)
    assert result.exit_code == exit_codes.REFUSED
    assert "no server at" in result.output


@pytest.mark.slow
def test_the_command_needs_no_library_but_click() -> None:
    program = "import sys, mmsup.supervisor.chaos.command\nprint(*{each.partition('.')[0] for each in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numpy", "matplotlib", "aiohttp", "torch", "zmq", "psutil", "yaml", "grpc", "google"} & set(loaded)
