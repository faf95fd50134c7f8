"""Folders for built programs, and the cores that server and client use."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "build" / "benchmarks"
"""Programs and environments, built on demand; removed by `make clean`."""


@dataclass(frozen=True)
class Cores:
    """One core for all server processes, one for the client."""

    server: int
    client: int

    @property
    def before(self) -> list[str]:
        """Prefix of the server's command."""
        return ["taskset", "-c", str(self.server)]


def cores() -> Cores:
    """The first and the last usable core: neighbours are siblings of one core on most machines."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    return Cores(usable[0], usable[-1])


def program(name: str) -> Path:
    """Path of a C program of this folder, compiled if its source is newer."""
    source, target = HERE / f"{name}.c", BUILT / "bin" / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise SystemExit("a C compiler is needed for the load generator (cc, gcc or clang)")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    return target
