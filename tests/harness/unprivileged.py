"""A server under this uid, without the capabilities by which root passes over everything: no control groups either."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.server import Server, serving


@contextlib.contextmanager
def unprivileged(repository: Path, folder: Path, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`folder`: for the program that drops the capabilities."""
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec setpriv --bounding-set=-all --inh-caps=-all {sys.executable} "$@"\n')
    python.chmod(0o700)
    with serving(repository, env=env, python=str(python)) as server:
        yield server
