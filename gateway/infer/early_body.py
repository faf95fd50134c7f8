"""Reads timeout and priority from the request body while the request still waits for a worker.

Both are in the body, which otherwise is received only when its worker is known. Where a worker must be waited for,
bodies up to EARLY_LIMIT_BYTES are received at once; for larger ones, and those of unknown length, the model's own
deadline and priority apply while they wait.
"""

from __future__ import annotations

from typing import Final

from mmsup.gateway.http import request_body
from mmsup.gateway.http.request import HttpRequest
from mmsup.gateway.protocol import binary_tensors, infer_request, json_document

EARLY_LIMIT_BYTES: Final = 1 << 18
"""A connection buffers as much of an unread body anyway (READ_BYTES)."""


class EarlyBody:
    """The body of one request. `size`: None for a chunked body; `received_ns`: when its head was received."""

    def __init__(self, request: HttpRequest, size: int | None, received_ns: int) -> None:
        self._request = request
        self._size = size
        self._received_ns = received_ns
        self.body: bytearray | None = None
        """Set when it was received early."""

    async def read_wait_options(self, deadline_ns: int) -> tuple[int, int]:
        """The deadline, brought forward by the request's own timeout, and its priority; 0 for none."""
        request, size = self._request.raw, self._size
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
        return min(deadline_ns, self._received_ns + timeout_us * 1000) if timeout_us else deadline_ns, priority
