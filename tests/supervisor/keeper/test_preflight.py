"""What a rehearsal says, in the child and to the keeper; that it runs at all is shown in test_handover.py."""

from __future__ import annotations

import json
import os

import pytest

from mmsup.ipc import exit_codes
from mmsup.ipc.messages.handshake import WIRE_VERSION
from mmsup.supervisor.config.settings import Settings
from mmsup.supervisor.keeper import preflight, reexec
from mmsup.supervisor.keeper.preflight import PreflightResult
from supervisor_estate import estate_of

SETTINGS = Settings((), "/run/x", "/var/x").to_json()


@pytest.mark.slow
def test_code_that_can_take_over_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    fd = reexec.write(estate_of(settings=SETTINGS))
    assert preflight.run_preflight(fd, "digest", with_controller=True) == exit_codes.SUCCESS
    said = capsys.readouterr().out.splitlines()
    assert preflight._parse_result(said) == PreflightResult(build_id="digest")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"settings": "[1]"}, "WireError: "),
        ({"settings": SETTINGS, "remembered": "of another version"}, "cannot read what the running brain remembers"),
    ],
)
def test_what_it_cannot_read_is_said_in_one_line(
    fields: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        preflight.run_preflight(reexec.write(estate_of(**fields)), "digest", with_controller=True) == exit_codes.REFUSED
    )
    (said,) = capsys.readouterr().out.splitlines()
    assert reason in said


def test_an_estate_of_another_format_is_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    fd = os.memfd_create("estate")
    os.write(fd, b"[99]")
    assert preflight.run_preflight(fd, "digest", with_controller=True) == exit_codes.REFUSED
    assert "not of format" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ([json.dumps({"wire": WIRE_VERSION + 1, "version": "9.9", "code": "x"})], "version 9.9 speaks wire"),
        ([], "did not say what it is"),
        (["not JSON"], "did not say what it is"),
        (["[]"], "did not say what it is"),
        (['{"code": 1}'], "did not say what it is"),
    ],
)
def test_what_is_no_yes_is_a_no(said: list[str], fault: str) -> None:
    assert fault in preflight._parse_result(said).error


def test_the_reason_is_the_last_line_and_the_place() -> None:
    said = ["Traceback", '  File "/x/keeper.py", line 3', "    class Keeper", "SyntaxError: expected ':'", ""]
    assert preflight._error_line(said) == "SyntaxError: expected ':' (File \"/x/keeper.py\", line 3)"
    assert preflight._error_line([]) == ""
