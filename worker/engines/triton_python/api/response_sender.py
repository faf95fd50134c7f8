"""`InferenceResponseSender`: the responses of one request, from any thread of the model, also after `execute`.

Without the decoupled mode there is one response, and whoever waits for it gets it by `wait`.
"""

from __future__ import annotations

import threading
from typing import Final

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.response import InferenceResponse

RESPONSE_COMPLETE_FINAL: Final = 1
_FLAGS: Final = (0, RESPONSE_COMPLETE_FINAL)


class InferenceResponseSender:
    def __init__(self) -> None:
        self._is_taken = False
        self._response: InferenceResponse | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        check_response(response, flags)
        with self._lock:
            if self._closed.is_set():
                raise TritonModelException("the response sender is closed: the final response was sent, or it failed")
            if response is not None:
                if self._response is not None:
                    raise TritonModelException("a model that is not decoupled sends one response for each request")
                self._response = response
            if flags == RESPONSE_COMPLETE_FINAL:
                if self._response is None:
                    raise TritonModelException("a model that is not decoupled sends a response for each request")
                self._closed.set()

    def take(self) -> None:
        """The model has it."""
        self._is_taken = True

    @property
    def is_taken(self) -> bool:
        return self._is_taken

    def is_cancelled(self) -> bool:
        return False

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Nothing can be sent any more."""
        self._closed.set()

    def wait(self) -> InferenceResponse | None:
        """The response, once the model has sent its last; None if it was closed without one."""
        self._closed.wait()
        return self._response


def check_response(response: object, flags: object) -> None:
    """TritonModelException if it cannot be sent."""
    if flags not in _FLAGS:
        raise TritonModelException("flags of send are 0 or TRITONSERVER_RESPONSE_COMPLETE_FINAL")
    if response is None and not flags:
        raise TritonModelException("send needs a response, unless it says TRITONSERVER_RESPONSE_COMPLETE_FINAL")
    if response is not None and not isinstance(response, InferenceResponse):
        raise TypeError(f"send takes an InferenceResponse, not a {type(response).__name__}")
