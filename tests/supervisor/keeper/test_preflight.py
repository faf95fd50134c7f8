"""The preflight's output in the child, and its result in the keeper; test_reexec.py runs it in a real keeper."""

from __future__ import annotations

import json
import os

import pytest

from keeper_rig import state_of
from mmsup.ipc import exit_codes
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import preflight, reexec
from mmsup.supervisor.keeper.preflight import PreflightResult

SETTINGS = Settings((), "/run/x", "/var/x").to_json()


@pytest.mark.slow
def test_code_that_can_take_over_prints_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    fd = reexec.write(state_of(settings=SETTINGS))
    assert preflight.run_preflight(fd, "digest", with_controller=True) == exit_codes.SUCCESS
    output = capsys.readouterr().out.splitlines()
    assert preflight._parse_result(output) == PreflightResult(build_id="digest")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"settings": "[1]"}, "WireError: "),
        (
            {"settings": SETTINGS, "checkpoint": {"server": "of another version"}},
            "cannot read the running controller's checkpoint",
        ),
    ],
)
def test_what_it_cannot_read_is_printed_in_one_line(
    fields: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        preflight.run_preflight(reexec.write(state_of(**fields)), "digest", with_controller=True) == exit_codes.REFUSED
    )
    (output,) = capsys.readouterr().out.splitlines()
    assert reason in output


def test_an_state_of_another_format_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    fd = os.memfd_create("state")
    os.write(fd, b"[99]")
    assert preflight.run_preflight(fd, "digest", with_controller=True) == exit_codes.REFUSED
    assert "not of format" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ([json.dumps({"wire": WIRE_VERSION + 1, "version": "9.9", "code": "x"})], "version 9.9 speaks wire"),
        ([], "did not print its version"),
        (["not JSON"], "did not print its version"),
        (["[]"], "did not print its version"),
        (['{"code": 1}'], "did not print its version"),
    ],
)
def test_output_without_a_matching_version_is_an_error(output: list[str], fault: str) -> None:
    assert fault in preflight._parse_result(output).error


def test_the_reason_is_the_last_line_with_file_and_line() -> None:
    output = ["Traceback", '  File "/x/keeper.py", line 3', "    class Keeper", "SyntaxError: expected ':'", ""]
    assert preflight._error_line(output) == "SyntaxError: expected ':' (File \"/x/keeper.py\", line 3)"
    assert preflight._error_line([]) == ""
