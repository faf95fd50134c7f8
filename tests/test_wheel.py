"""The wheel has every module of the checkout, and a server that is installed from it starts."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from harness.server import eventually
from mmsup.supervisor.cli.ctl.control_client import NoServer, ServerRefused, call_server

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "ipc", "supervisor", "worker")
IMPORT_ALL = """
import importlib, pathlib, sys
import mmsup
(root,) = mmsup.__path__
assert root.startswith(sys.prefix), f"mmsup is imported from {root}"
for file in sorted(pathlib.Path(root).rglob("*.py")):
    name = ".".join(("mmsup", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    importlib.import_module(name)
"""


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, because a build leaves files beside its sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("src", *PACKAGES):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", source / "wheels", ".", cwd=source)
    (built,) = (source / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel, which finds libraries in the running environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-deps"]
    run(*pip, "--no-index", wheel, cwd=folder)
    (library,) = folder.glob("lib/python*/site-packages")
    # Only now: pip must not see, and replace, the mmsup of the running environment.
    (library / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def test_the_wheel_has_every_file_of_the_checkout_and_no_other(wheel: Path) -> None:
    files = {Path("mmsup/__init__.py"), Path("mmsup/py.typed")}
    files |= {Path("mmsup", each.relative_to(ROOT)) for name in PACKAGES for each in (ROOT / name).rglob("*.py")}
    files |= {each.relative_to(ROOT / "src") for each in (ROOT / "src" / "mmsup" / "client").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        found = {Path(each) for each in archive.namelist() if ".dist-info/" not in each}
    assert found == files


def test_every_module_of_the_wheel_can_be_imported(installed: Path) -> None:
    run(installed / "bin" / "python", "-W", "error", "-c", IMPORT_ALL, cwd=installed)


def test_a_server_that_is_installed_from_the_wheel_is_live(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    runtime_dir = str(tmp_path / "run")
    command = [str(installed / "bin" / "mmsup"), "serve", "--model-repository", str(tmp_path / "models")]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command += ["--runtime-dir", runtime_dir, "--state-dir", str(tmp_path / "state")]

    def live() -> bool:
        assert server.poll() is None, (tmp_path / "output").read_text()
        try:
            host, _, port = call_server(runtime_dir, "status")["addresses"]["http"].rpartition(":")
            with contextlib.closing(http.client.HTTPConnection(host.strip("[]"), int(port), timeout=10.0)) as client:
                client.request("GET", "/v2/health/live")
                return client.getresponse().status == 200
        except (NoServer, ServerRefused, KeyError, OSError):
            return False

    with (tmp_path / "output").open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        eventually(live, "an answer to /v2/health/live", 120.0)
    finally:
        server.terminate()
        assert server.wait(60.0) == 0, (tmp_path / "output").read_text()
