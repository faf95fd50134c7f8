"""One known request in flight: sent as a packed record, answered from constant bytes and the outputs of its reply.

Anything but the expected reply (another reply, a deadline, the exit of the worker, the client's leaving) makes it an
ordinary request first, as if it had been sent as one: its owner's `materialise`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from mmsup.gateway.dispatch.in_flight import InFlightRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer.known_request import PackedRequest
from mmsup.ipc.transport.codec import RESULT_FIELDS

_FIRST_OUTPUT = len(RESULT_FIELDS)


class RequestOwner(Protocol):
    """The connection's pipeline, as its known requests see it."""

    def deliver(self, parts: Parts, close: bool) -> None: ...
    def materialise(self, request: PackedInFlight) -> None:
        """Make an ordinary request of it, which takes its place."""
        ...


class PackedInFlight:
    """Made by `send`, with the link's next id."""

    __slots__ = ("deadline_ns", "is_answered", "known", "link", "number", "owner", "record", "started_ns")

    def __init__(self, known: PackedRequest, owner: RequestOwner, link: WorkerLink, number: int) -> None:
        self.known = known
        self.owner = owner
        self.link = link
        self.number = number
        self.started_ns = time.monotonic_ns()
        self.deadline_ns = self.started_ns + known.deadline_ns
        self.record = b""
        """As it was sent."""
        self.is_answered = False

    def materialise(self) -> InFlightRequest:
        self.owner.materialise(self)
        made = self.link.in_flight.requests[self.number]
        assert isinstance(made, InFlightRequest), "a known request is still one"
        return made

    def inputs(self) -> list[bytes]:
        """The bytes of the inputs, cut out of the record."""
        known = self.known
        at = len(known.record_parts[0]) + len(known.record_parts[1]) + 2 * 8
        found: list[bytes] = []
        for header, (start, end) in zip(known.record_parts[2:], known.spans, strict=True):
            at += len(header) + end - start
            found.append(self.record[at - (end - start) : at])
        return found

    @staticmethod
    def finish(replies: Sequence[tuple[PackedInFlight, list[Any]]]) -> None:
        """Count and answer these requests of one link. Counted first: who has the response finds it in the counters."""
        replies[0][0].known.counters.record_known(replies, time.monotonic_ns())
        for request, fields in replies:
            request.is_answered = True
            request.owner.deliver([request.known.response.render(fields[_FIRST_OUTPUT:])], False)  # noqa: FBT003 - hot

    def close(self) -> None:
        """Its response is written, or its client gone."""
        self.known.router.admission.leave(self.known.head.model, 0)


def send(known: PackedRequest, request: memoryview, owner: RequestOwner) -> PackedInFlight | None:
    """Send a request with these bytes, head and body; None if it is not admitted now. The route must be plain."""
    route, head, router = known.route, known.head, known.router
    if not router.admission.try_admit(head.model, route.spec):
        return None
    links = route.links
    link = links[0] if len(links) == 1 else min(links, key=WorkerLink.load)
    table = link.in_flight
    table.last_id = number = table.last_id + 1
    made = PackedInFlight(known, owner, link, number)
    made.record = record = _pack(known, number, made.deadline_ns, request)
    link.send_packed(number, made, record)
    return made


def _pack(known: PackedRequest, number: int, deadline_ns: int, request: memoryview) -> bytes:
    parts = known.record_parts
    numbers = number.to_bytes(8, "big"), deadline_ns.to_bytes(8, "big")
    if len(parts) == 3:
        ((start, end),) = known.spans
        return b"".join((parts[0], numbers[0], parts[1], numbers[1], parts[2], request[start:end]))
    pieces: list[bytes | memoryview] = [parts[0], numbers[0], parts[1], numbers[1]]
    for header, (start, end) in zip(parts[2:], known.spans, strict=False):  # one part more if there are no inputs
        pieces += header, request[start:end]
    return b"".join(pieces)
