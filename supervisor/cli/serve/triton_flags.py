"""Flags of Triton Inference Server: three that are translated, and those that are accepted without effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., object])

_NO_EFFECT: Final = "it has no effect here"
_OTHER_FLAGS: Final = """
    grpc-header-forward-pattern grpc-infer-allocation-pool-size grpc-infer-thread-count
    grpc-max-response-pool-size grpc-infer-response-compression-level
    allow-cpu-metrics allow-gpu-metrics backend-config backend-directory buffer-manager-thread-count
    cache-directory cuda-memory-pool-byte-size disable-auto-complete-config
    http-header-forward-pattern http-thread-count log-file metrics-config
    metrics-interval-ms min-supported-compute-capability model-config-name model-load-retry-count
    pinned-memory-pool-byte-size rate-limit rate-limit-resource trace-config
"""
IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(_OTHER_FLAGS.split(), _NO_EFFECT),
}
"""Accepted, so that a command line for Triton works, with one warning each. Flags that restrict access there
(`--grpc-use-ssl`, restricted APIs) are not among them: a protection that does not exist must not be accepted."""


def triton_flags(command: F) -> F:
    """Add Triton's flags to a click command, hidden from its help."""
    for name in IGNORED:
        command = click.option(f"--{name}", hidden=True, multiple=True)(command)
    for name in ("allow-http", "allow-grpc", "allow-metrics"):
        command = click.option(f"--{name}", type=bool, is_flag=False, flag_value=True, hidden=True)(command)
    return command


def ignored_flag_warnings(parsed: Mapping[str, object]) -> list[str]:
    """One sentence for each given flag that has no effect."""
    return [f"--{name}: {why}" for name, why in IGNORED.items() if parsed.get(name.replace("-", "_"))]
