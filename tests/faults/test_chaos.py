"""Chaos against a server of its own: eight models, every class of fault, and nothing that the checker finds.

`--chaos-seconds 600` makes it the long one; a seed that failed is replayed by `--chaos-seed`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
START_AND_END_S = 240.0
"""More than a server takes to start, to come to rest and to end, on a machine that others use as well."""
CHAOS = (sys.executable, "-m", "mmsup.supervisor.cli", "chaos")


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
    assert len(report["classes"]) >= min(30, seconds / 6)
