"""Programs of `examples/` as modules of a test: they import one another by their bare names, as when they are run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@contextmanager
def example(name: str) -> Iterator[ModuleType]:
    """The program as a module; afterwards nothing of `examples/` stays importable."""
    before = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))
        for each in set(sys.modules) - before:
            if str(getattr(sys.modules[each], "__file__", "")).startswith(str(EXAMPLES)):
                del sys.modules[each]
