"""What a zygote has imported before it forks: each import after a fork costs every worker its time and its memory."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmsup.worker.startup as startup
from mmsup.ipc.environment import WORKER_MARK
from mmsup.worker import __main__ as worker_main

NOT_FOR_ALL = {"mmsup.worker.hosting.group_loop", "mmsup.ipc.transport.zeromq_channel"}
"""Groups are started by exec, ZeroMQ is an option."""


def late_imports(path: Path) -> Iterator[str]:
    """Modules that are imported in functions."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            yield from (each.module for each in ast.walk(function) if isinstance(each, ast.ImportFrom) and each.module)


@pytest.mark.slow
def test_a_forked_worker_imports_nothing_of_the_server() -> None:
    assert startup.__file__ is not None
    assert worker_main.__file__ is not None
    files = [Path(worker_main.__file__), *Path(startup.__file__).parent.glob("*.py")]
    late = {name for path in files for name in late_imports(path)} - NOT_FOR_ALL
    assert "mmsup.worker.serving.loop" in late
    code = "import sys; from mmsup.worker.zygote.__main__ import load; load('numpy'); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={WORKER_MARK: "x" * 40}
    )
    assert loaded.returncode == 0, loaded.stderr
    assert late <= set(loaded.stdout.split()), sorted(late - set(loaded.stdout.split()))
