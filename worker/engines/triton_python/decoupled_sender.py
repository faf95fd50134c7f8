"""The response sender of a decoupled model: any number of responses for a request, from any thread."""

from __future__ import annotations

from collections.abc import Callable

from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.response_sender import InferenceResponseSender, check_response
from mmsup.worker.engines.triton_python.sent_responses import Answer, SentResponses

NOT_FINAL = "the response sender was dropped without TRITONSERVER_RESPONSE_COMPLETE_FINAL"


class DecoupledSender(InferenceResponseSender):
    def __init__(self, stream: SentResponses, convert: Callable[[InferenceResponse], Answer]) -> None:
        """`convert`: to what the client gets, copied: the model may write to its arrays after `send`."""
        super().__init__()
        self._stream = stream
        self._convert = convert

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        check_response(response, flags)
        if self.is_closed:
            raise TritonModelException("the response sender is closed: the final response was sent, or execute failed")
        if response is not None:
            self._stream.put(self._convert(response))
        if flags:
            self.close()
            self._stream.finish()

    def take(self) -> None:
        self._stream.is_taken = True

    def is_cancelled(self) -> bool:
        return self._stream.is_cancelled

    def __del__(self) -> None:
        self._stream.finish(TritonModelException(NOT_FINAL))  # unless it has ended before
