"""The folder from which a server runs is deleted, as by an update that moves it: it serves, and says what is gone."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from engines.build import write_identity_onnx
from harness.installation import Installation
from harness.server import Server, eventually, serving
from mmsup.supervisor.cli.ctl import control_client

pytestmark = pytest.mark.slow


def serves(server: Server) -> bool:
    http = server.http()
    try:
        return http.infer("one", x=("FP32", [1], [1.0]))[0] == 200
    finally:
        http.close()


def test_an_upgrade_from_a_deleted_folder_is_refused_with_that_reason_and_all_is_well_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity_onnx(tmp_path / "repository", "one")
    installed = Installation(tmp_path / "installed")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with serving(tmp_path / "repository", python=installed.python) as server:
        os.rmdir(tmp_path / "cwd")
        before = server.status()["brain"]["pid"], server.pid("one")
        shutil.move(installed.package, tmp_path / "away")
        with pytest.raises(control_client.ServerRefused, match=r"mmsup.* is gone; put the installation back there"):
            server.ctl("upgrade", ticket="first", force=True)
        assert (server.status()["brain"]["pid"], server.pid("one")) == before
        assert serves(server)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: "No module named 'mmsup'" in server.log(), "why no controller starts is in the log")
        shutil.move(tmp_path / "away", installed.package)
        eventually(lambda: server.status()["brain"]["pid"] != before[0], "a controller")
        server.await_state("one", "ready")
        assert serves(server)
        server.ctl("upgrade", ticket="second", force=True)
        assert serves(server)
        assert server.stop() == 0
