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
from mmsup.gateway.waking.request_wait import RequestWait

COLD_HEADER: Final = "X-Mmsup-Cold"
"""`1` in a response whose request has waited for its model to be loaded from sleep."""
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

    @property
    def held_bytes(self) -> int:
        return EARLY_LIMIT_BYTES if self._size is None else min(self._size, EARLY_LIMIT_BYTES)

    def on_cold(self) -> None:
        self._request.echo_headers[COLD_HEADER] = "1"

    async def read_options(self, wait: RequestWait) -> None:
        """The request's own timeout brings the deadline forward."""
        request, size = self._request.raw, self._size
        if size is None or size > EARLY_LIMIT_BYTES:
            return
        layout = binary_tensors.body_layout(request.headers.get(binary_tensors.HEADER), size)
        await request_body.send_continue(request)
        body = bytearray(size)
        await request_body.read_into(request, memoryview(body))
        self.body = body
        if not layout.header:
            return
        timeout_us, wait.priority = infer_request.timeout_and_priority(
            json_document.parse_json(memoryview(body)[: layout.header])
        )
        if timeout_us:
            wait.client_deadline_ns = self._received_ns + timeout_us * 1000
            wait.deadline_ns = min(wait.deadline_ns, wait.client_deadline_ns)
