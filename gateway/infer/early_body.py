"""What a request wishes of the wait for a worker: read from its body before there is a worker to take that.

Its own timeout and its class of priority stand in the body, which otherwise is read only when it is known where it
goes. Bodies up to EARLY_BYTES are read at once where a worker must be waited for; while larger ones wait, and those of
unknown size, the model's own deadline and class hold.
"""

from __future__ import annotations

from typing import Final

from mmsup.gateway.http import request_body
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.protocol import binary_tensors, infer_request, json_document

EARLY_LIMIT_BYTES: Final = 1 << 18
"""So much of a body that nobody reads lies in its connection anyway (READ_BYTES)."""


class EarlyBody:
    """The body of one request. `size`: None if only its end will tell; `since_ns`: when its head came."""

    def __init__(self, call: HttpRequest, size: int | None, since_ns: int) -> None:
        self._request = call
        self._size = size
        self._since_ns = since_ns
        self.body: bytearray | None = None
        """Once it was read."""

    async def read_wait_options(self, deadline_ns: int) -> tuple[int, int]:
        """The deadline, brought forward if the request says so, and the priority that it names; 0 for none."""
        request, size = self._request.request, self._size
        if size is None or size > EARLY_LIMIT_BYTES:
            return deadline_ns, 0
        layout = binary_tensors.body_layout(request.headers.get(binary_tensors.HEADER), size)
        await request_body.send_continue(request)
        body = bytearray(size)
        await request_body.read_into(request, memoryview(body))
        self.body = body
        if not layout.header:
            return deadline_ns, 0
        timeout_us, priority = infer_request.timeout_and_priority(
            json_document.parse_json(memoryview(body)[: layout.header])
        )
        return min(deadline_ns, self._since_ns + timeout_us * 1000) if timeout_us else deadline_ns, priority
