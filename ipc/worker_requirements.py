"""What the interpreter of a worker must have. Standard library only.

A worker looks at its start, before it imports anything that is not there. `mmsup check` runs this file in a model's
interpreter, with a JSON object of `modules` and `paths` as its argument: it prints its version, and those it lacks.
"""

from __future__ import annotations

import importlib.util
import json
import sys

LEAST_PYTHON = (3, 11)
WORKER_MODULES = ("msgpack", "numpy", "ml_dtypes")
"""Imported by every worker; each has the name of its distribution."""


def missing_modules(modules: tuple[str, ...]) -> list[str]:
    """Those of the modules that this interpreter does not find; nothing is imported."""
    return [name for name in modules if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return name in sys.modules


def interpreter_problem(version: tuple[int, ...], lacking: list[str], interpreter: str) -> str:
    """Why an interpreter of this version that lacks these modules runs no worker, and what to do; empty if it does."""
    if version[:2] < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return f"{interpreter} is Python {'.'.join(map(str, version[:2]))}; a worker needs {least} or newer"
    if not lacking:
        return ""
    install = f"{interpreter} -m pip install {' '.join(lacking)}"
    return f"{interpreter} lacks {' and '.join(lacking)}, which a worker needs: {install}"


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    sys.path.extend(request["paths"])
    answer = {"version": sys.version_info[:3], "missing": missing_modules(tuple(request["modules"]))}
    sys.stdout.write(json.dumps(answer))
