"""Where the benchmarks keep what they build, and which cores they use."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT = HERE.parent / "build" / "benchmarks"
"""Programs and environments: made on demand, kept, removed by `make clean`."""


@dataclass(frozen=True)
class Cores:
    """One for every process of the server, one for the client."""

    server: int
    client: int

    @property
    def before(self) -> list[str]:
        """The words before the server's command."""
        return ["taskset", "-c", str(self.server)]


def cores() -> Cores:
    """The first and the last core that we may use: siblings are neighbours on most machines."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("two cores are needed: one for the server, one for the client")
    return Cores(usable[0], usable[-1])


def program(name: str) -> Path:
    """A program of ours in C, compiled if its source is newer."""
    source, target = HERE / f"{name}.c", BUILT / "bin" / name
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return target
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise SystemExit("a C compiler is needed for the load generator (cc, gcc or clang)")
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-o", str(target), str(source)], check=True)
    return target
