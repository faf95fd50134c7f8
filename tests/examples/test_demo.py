"""The demonstration, run as `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"
LIMIT_S = 300.0


@pytest.mark.slow
def test_the_demonstration_breaks_no_promise() -> None:
    command = [sys.executable, str(DEMO), "--json"]
    # Threads of scikit-learn that spin for one another on busy cores take minutes instead of seconds.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["ok"], shown["broken"]
    assert len(shown["models"]) >= 4
    assert min(shown["accuracy"].values()) >= 0.9
    assert [each["fault"] for each in shown["comebacks"]] == ["SIGKILL", "SIGSTOP"]
    assert shown["failed"] == 0 < shown["requests"]
    assert not any(shown["left"].values())
