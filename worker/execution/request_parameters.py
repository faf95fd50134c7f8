"""The parameters of the requests that run now, which share a run only if they have the same."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

Parameters = Mapping[str, Any]  # scalars
NONE: Final[Parameters] = MappingProxyType({})
PARAMETERS: Final[ContextVar[Parameters]] = ContextVar("parameters", default=NONE)


def shows_parameters(engine: object) -> bool:
    """Whether its models see the parameters of a request."""
    return bool(getattr(engine, "shows_parameters", False))
