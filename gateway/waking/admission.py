"""Admission control: limits the requests and request bytes that one gateway holds, per model and in total. Pure. One
counts all open requests, another those of them that wait for models to be loaded from sleep (cold_starts.py).

There are two limits of each kind. A model's own limit is configured. The limit over all models is shared by what is
still free (dynamic thresholds of Choudhury and Hahne with a factor of one): a model may hold as much as is unused. So
one model alone gets half of it, each of n flooded models gets 1/(n + 1), and some is always left for the next model. A
model that holds nothing is refused only when nothing is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from mmsup.ipc.errors import ServerError
from mmsup.ipc.specs import ModelSpec


class AdmissionControl:
    keys: ClassVar[tuple[str, str]] = "max_requests", "max_request_bytes"
    """The options that set the limits over all models."""
    what: ClassVar[str] = "open"
    retry_after_s: ClassVar[float] = 1.0

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self._max_bytes = max_bytes
        self.open_requests = 0
        self.open_bytes = 0
        """Of request bodies; small bodies, which travel inside messages, are not counted."""
        self.requests_by_model: dict[str, int] = {}
        """Has no entry for a model without open requests."""
        self._bytes_by_model: dict[str, int] = {}
        self.on_empty: Callable[[], None] | None = None
        """Called when the last open request leaves."""

    def try_admit(self, name: str, spec: ModelSpec | None) -> bool:
        """Count one more request of this model, unless a limit is reached."""
        held = self.requests_by_model.get(name, 0)
        if held + self.open_requests >= self.max_requests or (spec is not None and held >= spec.max_queue):
            return False
        self.requests_by_model[name] = held + 1
        self.open_requests += 1
        return True

    def admit(self, name: str, spec: ModelSpec | None) -> None:
        """Count one more request of this model; ServerError `queue_full` if a limit is reached."""
        if self.try_admit(name, spec):
            return
        held = self.requests_by_model.get(name, 0)
        if held + self.open_requests >= self.max_requests:
            raise self._no_share(f"{self.open_requests} requests", held, name, f"`{self.keys[0]}`, {self.max_requests}")
        limit = 0 if spec is None else spec.max_queue
        raise _queue_full(name, f"model '{name}' has {held} requests of {limit}")

    def reserve(self, name: str, spec: ModelSpec | None, size: int) -> None:
        """Count `size` more bytes; ServerError `queue_full` if a limit is reached. One body alone always fits."""
        held = self._bytes_by_model.get(name, 0)
        if held and spec is not None and held + size > spec.max_queue_bytes:
            raise _queue_full(name, f"model '{name}' holds {spec.max_queue_bytes} bytes of requests")
        if self.open_bytes and held + size + self.open_bytes > self._max_bytes:
            raise self._no_share(
                f"{self.open_bytes} bytes of requests", held, name, f"`{self.keys[1]}`, {self._max_bytes}"
            )
        self._bytes_by_model[name] = held + size
        self.open_bytes += size

    def leave(self, name: str, size: int, requests: int = 1) -> None:
        """Count so many requests less, which had reserved `size` bytes."""
        left = self.requests_by_model[name] - requests
        self.open_requests -= requests
        if left:
            self.requests_by_model[name] = left
        else:
            del self.requests_by_model[name]
        if size:
            self.open_bytes -= size
            rest = self._bytes_by_model[name] - size
            if rest:
                self._bytes_by_model[name] = rest
            else:
                del self._bytes_by_model[name]
        if not self.open_requests and self.on_empty is not None:
            self.on_empty()

    def _no_share(self, opened: str, held: int, name: str, limit: str) -> ServerError:
        text = f"the server has {opened} {self.what}, {held} of them of model '{name}'"
        return _queue_full(name, f"{text}: {limit}, are shared among all models", self.retry_after_s)


def _queue_full(name: str, text: str, retry_after_s: float = 1) -> ServerError:
    return ServerError("queue_full", f"Exceeds maximum queue size: {text}", model=name, retry_after_s=retry_after_s)
