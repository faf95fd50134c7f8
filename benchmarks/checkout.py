"""Runs mmsup from any checkout: a virtual environment whose `mmsup` package is that checkout's `src/mmsup`.

Libraries come from the environment that runs the benchmark. The supervisor passes only an allow-list of environment
variables to its workers, so the choice of checkout lies in the environment's site-packages, not in PYTHONPATH.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
"""The checkout that this file belongs to."""


def make_environment(folder: Path, checkout: Path, modules: dict[str, str] | None = None) -> Path:
    """Create the environment in `folder`; returns its interpreter. `modules` maps names to source texts: each is
    imported by every process of the environment as it starts."""
    source = checkout.resolve() / "src"
    assert (source / "mmsup" / "__init__.py").exists(), f"{checkout} is no checkout of mmsup"
    library = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    library.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    (library / "checkout.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    for name, text in (modules or {}).items():
        (library / f"{name}.py").write_text(text)
        (library / f"{name}.pth").write_text(f"import {name}\n")
    return python


def commit_of(checkout: Path) -> str:
    """The short commit of a checkout, with a `+` if files were changed; its path without git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or str(checkout)
