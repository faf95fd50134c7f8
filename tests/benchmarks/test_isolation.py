"""The comparison of servers under faults, on ourselves: the neighbour fails never, the victim is back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import isolation
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.cgroup1
def test_a_segmentation_fault_and_a_hang_reach_no_neighbour(tmp_path: Path) -> None:
    if not os.access(isolation.GROUPS, os.W_OK):
        pytest.skip("no writable memory control group (v1)")
    found = tmp_path / "found.json"
    words = ["--peers=mmsup", "--harms=segv,hang-gil", "--before-s=1", f"--json={found}"]
    command = [sys.executable, str(ROOT / "benchmarks" / "isolation.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    for each in json.loads(found.read_text())["faults"]:
        seen = each["seen"]
        assert seen["sent"] > 100
        assert seen["failures"] == []
        assert seen["back_s"] is not None
        assert seen["serves_after"]
