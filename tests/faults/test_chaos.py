"""Runs `mmsup chaos` against real servers: every class of fault on eight models, without a finding of the checker.

`--chaos-seconds 600` makes it the long one; a seed that failed is replayed by `--chaos-seed`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from harness.invariants import assert_gone, server_processes, snapshot
from harness.server import eventually, serving
from mmsup.supervisor.chaos.plan import fault_model

pytestmark = pytest.mark.slow
START_AND_END_S = 240.0
"""Generous limit for start, settling and end of the server on a loaded machine."""
CHAOS = (sys.executable, "-m", "mmsup.supervisor.cli", "chaos")


@pytest.mark.long
def test_nothing_that_befalls_one_model_or_process_reaches_the_others(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    seconds, seed = pytestconfig.getoption("--chaos-seconds"), pytestconfig.getoption("--chaos-seed")
    command = [*CHAOS, "--seconds", str(seconds), "--json", str(tmp_path / "report.json")]
    command += [] if seed is None else ["--seed", str(seed)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds + START_AND_END_S, check=False)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["green"]
    assert report["failed_healthy"] == report["wrong"] == report["lost"] == sum(report["left"].values()) == 0
    assert report["served"] > report["sent"] / 2
    assert report["served_known"] > report["served"] / 8, "hardly any request was served as a known one"
    assert len(report["classes"]) >= min(30, seconds / 6)


@pytest.mark.fault("F13", "F25b")
def test_a_killed_keeper_takes_everything_along_and_all_is_served_again_while_poison_is_refused(tmp_path: Path) -> None:
    command = [*CHAOS, "--seconds", "24", "--seed", "3", "--models", "4", "--every", "4s..5s"]
    command += ["--faults", "kill_keeper,poison", "--json", str(tmp_path / "report.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_AND_END_S, check=False)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failed_healthy"] == 0
    assert report["keeper"]["count"] >= 1
    assert report["poison_deaths"]


@pytest.mark.fault("F74", "F77")
def test_what_is_called_dies_and_whoever_asked_the_caller_or_the_ensemble_is_told_who(tmp_path: Path) -> None:
    names = ["kill_called", "crash_called", "kill_step", "crash_step"]
    command = [*CHAOS, "--seconds", "28", "--seed", "3", "--models", "2", "--every", "1s"]
    command += ["--faults", ",".join(names), "--json", str(tmp_path / "report.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_AND_END_S, check=False)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failed_healthy"] == 0
    assert {each["name"] for each in report["classes"]} == {*names}


@pytest.mark.fault("F81")
def test_a_killed_grpc_front_breaks_its_own_calls_and_nothing_else(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    command = [*CHAOS, "--seconds", "18", "--seed", "3", "--models", "2", "--every", "2s", "--grpc-front", "grpcio"]
    command += ["--faults", "kill_front,segv", "--json", str(tmp_path / "report.json"), "--history", str(history)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_AND_END_S, check=False)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert {each["name"] for each in report["classes"]} == {"kill_front", "segv"}
    records = [json.loads(line) for line in history.read_text().splitlines()]
    over_grpc = {each["id"] for each in records if each.get("via") == "grpc"}
    ends = [each["kind"] for each in records if each.get("id") in over_grpc and "kind" in each]
    assert ends.count("right") > len(over_grpc) / 2 > 20
    assert "reset" in ends, "the call that was under way"


@pytest.mark.parametrize("local", [False, True], ids=["over HTTP alone", "on the same machine"])
def test_a_server_that_somebody_else_started_is_hurt_with_consent_and_left_as_it_was(
    tmp_path: Path, local: bool
) -> None:
    for name in ("good", "bad"):
        fault_model.write_fault_model(tmp_path / "models", name, hang_limit="1s")
    with serving(tmp_path / "models") as server:
        before = snapshot(server).roles
        host, port = server.address()
        command = [*CHAOS, "--url", f"http://{host}:{port}", "--yes-break-it", "--seconds", "16", "--seed", "1"]
        command += [
            "--healthy",
            "good",
            "--victim",
            "bad",
            "--json",
            str(tmp_path / "report.json"),
            "--every",
            "1s..2s",
        ]
        command += ["--faults", "segv,abort,hang,raise" + (",kill_idle,kill_brain" if local else "")]
        command += ["--runtime-dir", str(server.runtime_dir)] if local else []
        ended = subprocess.run(command, capture_output=True, text=True, timeout=START_AND_END_S, check=False)
        print(ended.stdout, ended.stderr)
        assert ended.returncode == 0, ended.stdout
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["failed_healthy"] == 0
        assert report["whole"]["count"] >= 1
        assert (report["detection"]["count"] > 0) == local
        eventually(lambda: snapshot(server).roles == before, "the processes of before")
        everyone = server_processes(server)
        assert server.stop() == 0
        assert_gone(server, everyone)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_a_run_that_is_broken_off_takes_its_server_along(number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="mmsup_test_") as folder:
        env = {**os.environ, "TMPDIR": folder}
        with subprocess.Popen([*CHAOS, "--seconds", "60", "--models", "2"], env=env, stderr=subprocess.PIPE) as run:
            eventually(lambda: list(Path(folder).glob("mmsup_chaos_*/run/control.sock")), "its server", 60.0)
            family = psutil.Process(run.pid).children(recursive=True)
            assert family
            run.send_signal(number)
            run.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        assert list(Path(folder).iterdir()) == []
