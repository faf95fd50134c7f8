"""An installation of mmsup that a test may change while it runs: a virtual environment with a copy of the package."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import mmsup


class Installation:
    """A private copy of mmsup; everything else comes from the environment that runs the tests."""

    def __init__(self, folder: Path) -> None:
        home = Path(sys.executable).resolve().parent
        library = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        self.package = library / "mmsup"
        self.python = str(folder / "bin" / "python")
        shutil.copytree(next(iter(mmsup.__path__)), self.package, ignore=shutil.ignore_patterns("__pycache__"))
        Path(self.python).parent.mkdir()
        Path(self.python).symlink_to(Path(sys.executable).resolve())
        (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
        (library / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    def change(self, file: str, old: str, new: str) -> None:
        """Replace text in one file, as another version would have it."""
        path = self.package / file
        text = path.read_text()
        assert old in text, f"{file} does not say {old!r}"
        path.write_text(text.replace(old, new))
