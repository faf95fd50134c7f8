"""Describes the machine and the versions for a report."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from places import HERE


def describe_machine() -> dict[str, str]:
    """Name and value, in the order of reading."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_field('/proc/cpuinfo', 'model name')} (family {_field('/proc/cpuinfo', 'cpu family')}, "
        f"model {_field('/proc/cpuinfo', 'model')}), {os.cpu_count()} cores",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 2**20:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "commit": _commit(),
    }


def load_average() -> float:
    """Load average of the last minute: before a benchmark starts, that of other programs."""
    return os.getloadavg()[0]


def _field(file: str, name: str) -> str:
    lines = (line.partition(":") for line in Path(file).read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "unknown")


def _commit() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
