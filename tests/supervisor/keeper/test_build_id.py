from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.installation import Installation
from mmsup.supervisor.keeper import build_id

PROGRAM = "from mmsup.supervisor.keeper import build_id; print(build_id.loaded_build_id())"


def test_source_files_include_those_below_symbolic_links() -> None:
    names = {path.relative_to(build_id.PACKAGE).as_posix() for path in build_id.source_files()}
    assert {"__init__.py", "ipc/messages/data.py", "supervisor/keeper/keeper.py", "worker/engines/ort.py"} <= names


@pytest.mark.slow
def test_the_build_id_changes_if_and_only_if_a_loaded_file_has_changed(tmp_path: Path) -> None:
    installed = Installation(tmp_path / "installed")

    def now() -> str:
        return subprocess.check_output([installed.python, "-P", "-c", PROGRAM], text=True)

    before = now()
    installed.change("supervisor/controller/upgrade.py", "from __future__", "# another\nfrom __future__")
    assert now() == before
    installed.change("__init__.py", '"0.1.0"', '"0.2.0"')
    assert now() != before
