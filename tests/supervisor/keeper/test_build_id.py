from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.installation import Installation
from mmsup.supervisor.keeper import build_id

PROGRAM = "from mmsup.supervisor import program; print(program.of_loaded())"


def test_every_source_is_among_the_files_those_below_links_too() -> None:
    names = {path.relative_to(build_id.PACKAGE).as_posix() for path in build_id.source_files()}
    assert {"__init__.py", "ipc/messages/data.py", "supervisor/keeper/keeper.py", "worker/engines/ort.py"} <= names


@pytest.mark.slow
def test_what_a_process_runs_is_another_code_when_a_file_of_it_has_changed_and_only_then(tmp_path: Path) -> None:
    installed = Installation(tmp_path / "installed")

    def now() -> str:
        return subprocess.check_output([installed.python, "-P", "-c", PROGRAM], text=True)

    before = now()
    installed.change("supervisor/controller/upgrade.py", "from __future__", "# another\nfrom __future__")
    assert now() == before
    installed.change("__init__.py", '"0.1.0"', '"0.2.0"')
    assert now() != before
