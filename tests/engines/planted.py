"""A Python of its own for a server, in which a bug is planted: every process of that server runs it.

A virtual environment takes milliseconds to make; its `.pth` imports `planted.py` before anything else, and that changes
one module at its import. So the bug is in a real server, and nowhere else.
"""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

import mmsup

_PLANT = '''
import importlib.util, sys


class Gardener:
    """Executes the module as it is, then what is planted in it."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        grown = spec.loader.exec_module

        def exec_module(module):
            grown(module)
            plant(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Gardener())
'''


def python_with(folder: Path, module: str, plant: str) -> str:
    """The interpreter. `plant`: source of a function `plant(module)` that changes the module."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "planted.py").write_text(f"MODULE = {module!r}\n\n{plant}\n{_PLANT}")
    paths = (sysconfig.get_paths()["purelib"], str(Path(mmsup.__path__[0]).parent), "import planted")
    (site / "planted.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin" / "python")
