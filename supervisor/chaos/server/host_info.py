"""The machine that figures were seen on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from mmsup.supervisor.config.units import size_text


def describe_host() -> str:
    """Processor, cores, memory, kernel, Python."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    return (
        f"{_processor_name()}, {cores} cores, {size_text(memory)}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
