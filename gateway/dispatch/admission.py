"""Admission control: limits the requests and request bytes that one gateway holds, per model and in total. Pure.

There are two limits of each kind. A model's own limit is configured. The limit over all models is shared by what is
still free (dynamic thresholds of Choudhury and Hahne with a factor of one): a model may hold as much as is unused. So
one model alone gets half of it, each of n flooded models gets 1/(n + 1), and some is always left for the next model. A
model that holds nothing is refused only when nothing is free.
"""

from __future__ import annotations

from collections.abc import Callable

from mmsup.ipc.errors import ServerError
from mmsup.ipc.specs import ModelSpec


class AdmissionControl:
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
            text = f"the server has {self.open_requests} requests open, {held} of them of model '{name}'"
            raise _queue_full(name, f"{text}: {self.max_requests} are shared among all models")
        limit = 0 if spec is None else spec.max_queue
        raise _queue_full(name, f"model '{name}' has {held} requests of {limit}")

    def reserve(self, spec: ModelSpec, size: int) -> None:
        """Count `size` more bytes; ServerError `queue_full` if a limit is reached. One body alone always fits."""
        held = self._bytes_by_model.get(spec.name, 0)
        if held and held + size > spec.max_queue_bytes:
            raise _queue_full(spec.name, f"model '{spec.name}' holds {spec.max_queue_bytes} bytes of requests")
        if self.open_bytes and held + size + self.open_bytes > self._max_bytes:
            text = f"the server holds {self.open_bytes} bytes of requests, {held} of them for model '{spec.name}'"
            raise _queue_full(spec.name, f"{text}: {self._max_bytes} are shared among all models")
        self._bytes_by_model[spec.name] = held + size
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


def _queue_full(name: str, text: str) -> ServerError:
    return ServerError("queue_full", f"Exceeds maximum queue size: {text}", model=name, retry_after_s=1)
