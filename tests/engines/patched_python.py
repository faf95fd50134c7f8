"""A Python environment in which modules of mmsup are patched at their import, for every process of a server.

A virtual environment takes milliseconds to make. Its `.pth` file imports `patched.py` before anything else, so that the
bug is in a real server, and nowhere else.
"""

from __future__ import annotations

import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

import mmsup

_IMPORT_HOOK = '''
import importlib.util, sys


class PatchingFinder:
    """Executes a module as it is, then its patch."""

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        scope = {}
        exec(PATCHES.pop(name), scope)
        patch, spec = scope["patch"], importlib.util.find_spec(name)
        exec_original = spec.loader.exec_module

        def exec_module(module):
            exec_original(module)
            patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, PatchingFinder())
'''


def python_with(folder: Path, patches: Mapping[str, str]) -> str:
    """The interpreter. `patches`: by module the source of a function `patch(module)` that changes it."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "patched.py").write_text(f"PATCHES = {dict(patches)!r}\n{_IMPORT_HOOK}")
    paths = (sysconfig.get_paths()["purelib"], str(Path(mmsup.__path__[0]).parent), "import patched")
    (site / "patched.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin" / "python")
