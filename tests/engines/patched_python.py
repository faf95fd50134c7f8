"""A Python environment in which one module of mmsup is patched at its import, for every process of a server.

A virtual environment takes milliseconds to make. Its `.pth` file imports `patched.py` before anything else, so that the
bug is in a real server, and nowhere else.
"""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import mmsup

_IMPORT_HOOK = '''
import importlib.util, sys


class PatchingFinder:
    """Executes the module as it is, then the patch."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        exec_original = spec.loader.exec_module

        def exec_module(module):
            exec_original(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, PatchingFinder())
'''


def python_with(folder: Path, module: str, patch: str) -> str:
    """The interpreter. `patch`: source of a function `patch(module)` that changes the module."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "patched.py").write_text(f"MODULE = {module!r}\n\n{patch}\n{_IMPORT_HOOK}")
    paths = (sysconfig.get_paths()["purelib"], str(Path(mmsup.__path__[0]).parent), "import patched")
    (site / "patched.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin" / "python")
