"""What is open in one gateway, in requests and in bytes, by model and in all; what may come on top. Pure.

Two bounds of each kind. A model's own is its operator's. That over all models is shared by what is *free*: a model may
have as much open as is still free. So one model alone gets half of it, of n that are flooded each gets 1/(n + 1), and a
part is always left for the next model that comes, whoever floods. A model that has nothing open is refused only when
nothing is free. (Choudhury and Hahne's dynamic thresholds, with a factor of one.)
"""

from __future__ import annotations

from mmsup.ipc.errors import ServerError
from mmsup.ipc.specs import ModelSpec


class AdmissionControl:
    """One per gateway."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self.open_requests = 0
        """Admitted and not yet left."""
        self.open_bytes = 0
        """Of their bodies, as far as these do not travel in messages."""
        self.requests_by_model: dict[str, int] = {}
        """Requests of each model that has any."""
        self._bytes_by_model: dict[str, int] = {}

    def check(self, name: str, spec: ModelSpec | None) -> None:
        """ServerError `queue_full` if no more requests of this model may come now."""
        held = self.requests_by_model.get(name, 0)
        if held + self.open_requests >= self._max_requests:
            text = f"the server has {self.open_requests} requests open, {held} of them of model '{name}'"
            raise _queue_full(name, f"{text}: {self._max_requests} are shared among all models")
        if spec is not None and held >= spec.max_queue:
            raise _queue_full(name, f"model '{name}' has {held} requests of {spec.max_queue}")

    def enter(self, name: str) -> None:
        """One more."""
        self.requests_by_model[name] = self.requests_by_model.get(name, 0) + 1
        self.open_requests += 1

    def reserve(self, spec: ModelSpec, size: int) -> None:
        """So many bytes more; ServerError `queue_full` if they may not come now."""
        held = self._bytes_by_model.get(spec.name, 0)
        if held and held + size > spec.max_queue_bytes:
            raise _queue_full(spec.name, f"model '{spec.name}' holds {spec.max_queue_bytes} bytes of requests")
        if self.open_bytes and held + size + self.open_bytes > self._max_bytes:
            text = f"the server holds {self.open_bytes} bytes of requests, {held} of them for model '{spec.name}'"
            raise _queue_full(spec.name, f"{text}: {self._max_bytes} are shared among all models")
        self._bytes_by_model[spec.name] = held + size
        self.open_bytes += size

    def leave(self, name: str, size: int) -> None:
        """One less, which held so many bytes."""
        left = self.requests_by_model[name] - 1
        self.open_requests -= 1
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


def _queue_full(name: str, text: str) -> ServerError:
    return ServerError("queue_full", f"Exceeds maximum queue size: {text}", model=name, retry_after_s=1)
