"""The request for which code of a model runs, in workers whose requests are open side by side.

Where one run follows another, the status page says which requests are in it. Here a context variable does, which tasks
inherit from the task that makes them.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mmsup.worker.calls.transport import CallLink

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, slots=True)
class Caller:
    link: CallLink
    number: int
    """The id of the request."""
    priority: int
    loop: asyncio.AbstractEventLoop | None = None
    """In which its code awaits, turned by the loop of the worker, which reads the link."""


CALLER: Final[ContextVar[Caller | None]] = ContextVar("caller", default=None)
