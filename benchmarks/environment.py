"""A virtual environment per compared server, created from apps/NAME.txt on first use and when that file changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from places import BUILT, HERE

INSTALL_S = 1200


class InstallError(Exception):
    """Why a server could not be installed."""


def environment(name: str, pythons: Sequence[str] = ()) -> Path:
    """The folder of the environment; its interpreter is the first of `pythons` that exists, else the running one."""
    wanted = HERE / "apps" / f"{name}.txt"
    folder = BUILT / "env" / name
    made = folder / "made-from.txt"
    if made.exists() and made.read_text() == wanted.read_text():
        return folder
    print(f"installing {name} ({', '.join(wanted.read_text().split())}) ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = next((each for each in pythons if Path(each).exists()), sys.executable)
    _do([python, "-m", "venv", str(folder)])
    _do([str(folder / "bin" / "pip"), "install", "--quiet", "--requirement", str(wanted)])
    made.write_text(wanted.read_text())
    return folder


def version(folder: Path, package: str) -> str:
    """The version of a package that is installed there."""
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return _do([str(folder / "bin" / "python"), "-c", ask]).strip()


def _do(command: list[str]) -> str:
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{command[1:3]} took more than {INSTALL_S} s") from None
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise InstallError(" ".join(last) or f"{command[:3]} ended with {done.returncode}")
    return done.stdout
