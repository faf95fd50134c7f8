"""Whether the server as a whole is ready. Pure.

Ready: the front is up, routes are known, nothing is draining, each model wanted at the start has reached a verdict, and
at least one can serve (or none was wanted). A bad model is not-ready itself and no more. The strict rule asks in
addition that every wanted model serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelReadiness:
    """How one wanted model stands."""

    name: str
    serving: bool
    """Each of its versions has an instance that is ready."""
    has_outcome: bool
    """It is up, or a load of it has failed."""


@dataclass(frozen=True, slots=True)
class ServerReadiness:
    """The answer, and why not."""

    ready: bool
    reason: str = ""


def server_readiness(*, front: bool, draining: bool, wanted: Sequence[ModelReadiness], strict: bool) -> ServerReadiness:
    """The server's readiness. `front`: the gateways have their routes."""
    if draining:
        return ServerReadiness(ready=False, reason="the server is draining")
    if not front:
        return ServerReadiness(ready=False, reason="the gateways are not up yet")
    undecided = [each.name for each in wanted if not each.has_outcome]
    if undecided:
        return ServerReadiness(ready=False, reason=f"still loading: {_some(undecided)}")
    if wanted and not any(each.serving for each in wanted):
        return ServerReadiness(ready=False, reason="no model can serve")
    down = [each.name for each in wanted if not each.serving]
    if strict and down:
        return ServerReadiness(ready=False, reason=f"not serving: {_some(down)}")
    return ServerReadiness(ready=True)


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
