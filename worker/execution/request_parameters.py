"""The parameters of the requests that run now, which share a run only if they have the same. Set for models with an
interface that shows them (`ModelSpec.interface`)."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final

Parameters = Mapping[str, Any]  # scalars
NONE: Final[Parameters] = MappingProxyType({})
PARAMETERS: Final[ContextVar[Parameters]] = ContextVar("parameters", default=NONE)
