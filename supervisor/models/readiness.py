"""Whether the server as a whole is ready. Pure.

Ready: the gateways have their routes, the server is not draining, and at least one model serves (or none is wanted).
For the first `--startup-grace` seconds each model wanted at the start must also have been loaded or have failed, so
that a rollout does not send requests to a server that loads; after that a stuck load holds nothing back. A model that
fails makes only itself not ready. In strict mode every version of every wanted model has to serve, whatever the grace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelReadiness:
    """One wanted model."""

    name: str
    serving: bool
    """The version that a request gets which names none has an instance that is ready."""
    has_outcome: bool
    """That version has been loaded, or every load of a version has failed."""
    all_serving: bool = True
    """Each of its versions has an instance that is ready."""
    all_have_outcome: bool = True
    """Each of its versions has been loaded, or has failed."""


@dataclass(frozen=True, slots=True)
class ServerReadiness:
    ready: bool
    reason: str = ""


def server_readiness(
    *, front: bool, draining: bool, wanted: Sequence[ModelReadiness], strict: bool, is_grace_over: bool = False
) -> ServerReadiness:
    """The server's readiness. `front`: the gateways have their routes."""
    if draining:
        return ServerReadiness(ready=False, reason="the server is draining")
    if not front:
        return ServerReadiness(ready=False, reason="the gateways are not up yet")
    loading = [each.name for each in wanted if not each.has_outcome]
    down = [each.name for each in wanted if not each.serving]
    if loading and (strict or not is_grace_over or len(down) == len(wanted)):
        return ServerReadiness(ready=False, reason=f"still loading: {_some(loading)}")
    if wanted and len(down) == len(wanted):
        return ServerReadiness(ready=False, reason="no model can serve")
    incomplete = [each.name for each in wanted if not (each.serving and each.all_serving)]
    if strict and incomplete:
        return ServerReadiness(ready=False, reason=f"not serving: {_some(incomplete)}")
    return ServerReadiness(ready=True)


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
