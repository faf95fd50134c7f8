"""The unit file, read by systemd's own tool; nothing is installed and nothing is started."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmsup.supervisor.config.settings import Settings

UNITS = Path(__file__).resolve().parents[2] / "systemd"
ANALYZE = shutil.which("systemd-analyze")
PROGRAM = "/opt/mmsup/bin/mmsup"
EXPOSURE_LIMIT = 2.5

needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not on this machine")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is on this machine: verify looks for it."""
    text = (UNITS / "mmsup.service").read_text()
    assert PROGRAM in text
    path = tmp_path / "mmsup.service"
    path.write_text(text.replace(PROGRAM, sys.executable))
    return path


def section(name: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys keep their capitals
    parser.read(UNITS / "mmsup.service")
    return parser[name]


def service() -> configparser.SectionProxy:
    return section("Service")


@needs_analyze
@pytest.mark.slow
def test_systemd_finds_nothing_to_say_of_the_unit(unit: Path) -> None:
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
@pytest.mark.slow
def test_systemd_finds_nothing_to_say_of_the_unit_with_its_drop_in(unit: Path) -> None:
    folder = unit.with_name("mmsup.service.d")
    folder.mkdir()
    shutil.copy(UNITS / "gpu.conf", folder)
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
@pytest.mark.slow
def test_the_unit_exposes_little(unit: Path) -> None:
    command = [str(ANALYZE), "security", "--offline=yes", "--threshold=25", "--no-pager", str(unit)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # it fails above the threshold
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
    assert level is not None, output
    assert float(level[1]) <= EXPOSURE_LIMIT


def test_a_stop_is_given_the_time_that_a_drain_may_take() -> None:
    assert int(service()["TimeoutStopSec"]) > Settings((), "", "").exit_timeout_s + 10


def test_a_reload_is_the_hot_upgrade_and_waits_for_its_end() -> None:
    keys = service()
    assert keys["ExecReload"] == f"{PROGRAM} ctl upgrade"
    assert keys["TimeoutStartSec"] == "infinity", "it bounds a reload too, and a load takes its time"


def test_one_workers_memory_is_no_reason_to_stop_and_cgroups_are_ours() -> None:
    keys = service()
    assert keys["OOMPolicy"] == "continue"
    assert keys["Delegate"] == "yes"
    assert "ProtectControlGroups" not in keys, "it would make our own cgroup read-only"
    assert keys["KillMode"] == "mixed"
    assert keys["Type"] == "notify"


def test_a_killed_keepers_listeners_have_room_in_the_store_and_its_directories_are_the_units_own() -> None:
    keys = service()
    assert int(keys["FileDescriptorStoreMax"]) >= 2 * 4, "HTTP, metrics, HTTP on a path, control; and those given up"
    assert keys["RuntimeDirectoryPreserve"] == "restart", "or the files of sockets would be gone"
    assert keys["NotifyAccess"] == "main"
    directories = dict(each.split("=") for each in keys["Environment"].split())
    assert directories == {
        "MMSUP_RUNTIME_DIR": f"%t/{keys['RuntimeDirectory']}",
        "MMSUP_STATE_DIR": f"%S/{keys['StateDirectory']}",
    }


def test_a_hung_keeper_is_found_within_ten_seconds_and_a_crashing_one_is_not_tried_for_ever() -> None:
    unit, keys = section("Unit"), service()
    assert int(keys["WatchdogSec"]) == 10
    start_s = 5
    assert int(unit["StartLimitBurst"]) * (int(keys["RestartSec"]) + start_s) < int(unit["StartLimitIntervalSec"])
