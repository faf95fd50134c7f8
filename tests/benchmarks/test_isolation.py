"""The comparisons under faults, run on mmsup alone: the healthy model never fails, the victim recovers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fault_plan
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.cgroup1]
if not fault_plan.has_memory_groups():
    pytestmark.append(pytest.mark.skip(reason="no writable memory control group (v1)"))


def compared(tmp_path: Path, program: str, *words: str) -> Any:  # JSON
    """What it found."""
    found = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "benchmarks" / program), "--peers=mmsup", f"--json={found}", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(found.read_text())


def test_a_segmentation_fault_and_a_hang_affect_no_other_model(tmp_path: Path) -> None:
    for each in compared(tmp_path, "isolation.py", "--harms=segv,spin")["faults"]:
        seen = each["seen"]
        assert seen["sent"] > 100
        assert seen["failed"] == seen["wrong"] == seen["ended"] == 0
        (fault,) = seen["faults"].values()
        assert (fault["injected"], fault["never"], len(fault["back_s"])) == (1, 0, 1)


def test_a_server_that_recovers_by_itself_completes_a_plan_of_many_faults(tmp_path: Path) -> None:
    words = ("--faults=segv,raise,leave,garbage", "--seconds=16", "--every-s=2", "--seed=5")
    markdown = tmp_path / "table.md"
    seen = compared(tmp_path, "chaos_peers.py", *words, f"--markdown={markdown}")["servers"]["mmsup"]
    assert set(seen["faults"]) == {"segv", "raise", "leave", "garbage"}
    assert seen["failed"] == seen["wrong"] == seen["unexplained"] == seen["ended"] == seen["restarted"] == 0
    assert "| mmsup" in markdown.read_text()
