"""One known request in flight: sent as a packed record, answered from constant bytes and the outputs of its reply.

Anything but the expected reply (another reply, a deadline, the exit of the worker, the client's leaving) makes it an
ordinary request first, as if it had been sent as one: its owner's `materialise`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from mmsup.gateway.dispatch.in_flight import InFlightRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.http.response_bytes import head_end
from mmsup.gateway.infer.known_request import JsonInputs, PackedRequest
from mmsup.ipc.transport.codec import RESULT_FIELDS

_FIRST_OUTPUT: Final = len(RESULT_FIELDS)


class RequestOwner(Protocol):
    """The connection's pipeline, as its known requests see it."""

    def deliver_known(self, data: bytes) -> bool:
        """Write the response; True if it is done with the request, else it calls `close` later."""
        ...

    def materialise(self, request: PackedInFlight) -> None:
        """Make an ordinary request of it, which takes its place."""
        ...


class Recognised(NamedTuple):
    """A known request that was found in the bytes of a connection."""

    known: PackedRequest
    cost: int
    """For the fair queue."""
    start: int
    """Of the body."""
    end: int
    lists: Sequence[bytes | bytearray] = ()
    """Of numbers, if they are in JSON."""
    json_id: str = ""
    echo_id: str = ""

    @property
    def is_constant(self) -> bool:
        """Whether everything but the bytes of its tensors comes again in the next one like it."""
        return not self.lists and not self.json_id and not self.echo_id


class PackedInFlight:
    """Made by `send`, with the link's next id."""

    __slots__ = ("deadline_ns", "found", "is_answered", "known", "link", "number", "owner", "record", "started_ns")

    def __init__(self, found: Recognised, owner: RequestOwner, link: WorkerLink, number: int, started_ns: int) -> None:
        self.found = found
        self.known = found.known
        self.owner = owner
        self.link = link
        self.number = number
        self.started_ns = started_ns
        self.deadline_ns = started_ns + found.known.deadline_ns
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
        for header, size in zip(known.record_parts[2:], known.inputs.sizes, strict=False):
            at += len(header) + size
            found.append(self.record[at - size : at])
        return found

    @staticmethod
    def finish(replies: Sequence[tuple[PackedInFlight, list[Any]]]) -> None:
        """Count and answer these requests of one link. Counted first: who has the response finds it in the counters."""
        known = replies[0][0].known
        known.counters.record_known(replies, time.monotonic_ns())
        known.router.output_sizes.observe_inline((known.head.model, known.known.version), len(replies))
        date, written = head_end(), 0
        for request, fields in replies:
            request.is_answered = True
            found = request.found
            data = found.known.response.render(fields[_FIRST_OUTPUT:], date, found.json_id, found.echo_id)
            written += request.owner.deliver_known(data)
        if written:
            known.router.admission.leave(known.head.model, 0, written)

    def close(self) -> None:
        """Its response, which the client had to be waited for, is written; or its client is gone."""
        self.known.router.admission.leave(self.known.head.model, 0)


def send(found: Recognised, request: memoryview, owner: RequestOwner, started_ns: int = 0) -> PackedInFlight | None:
    """Send the request in these bytes, of which the head arrived then, by default now. None if it is not admitted now,
    or for the parser. Its route must be plain."""
    known, route = found.known, found.known.route
    data = _inputs(found, request)
    if data is None or not known.router.admission.try_admit(known.head.model, route.spec):
        return None
    link = route.links[0] if len(route.links) == 1 else min(route.links, key=WorkerLink.load)
    link.in_flight.last_id = number = link.in_flight.last_id + 1
    made = PackedInFlight(found, owner, link, number, started_ns or time.monotonic_ns())
    made.record = record = _pack(known.record_parts, number, made.deadline_ns, data)
    link.send_packed(number, made, record)
    return made


def _pack(parts: Sequence[bytes], number: int, deadline_ns: int, data: Sequence[bytes | memoryview]) -> bytes:
    """The record for the worker; `parts` of codec.infer_record_parts."""
    number_bytes, deadline_bytes = number.to_bytes(8, "big"), deadline_ns.to_bytes(8, "big")
    if len(data) == 1:
        return b"".join((parts[0], number_bytes, parts[1], deadline_bytes, parts[2], data[0]))
    rest = itertools.zip_longest(parts[2:], data, fillvalue=b"")  # without inputs there is one part
    return b"".join((parts[0], number_bytes, parts[1], deadline_bytes, *itertools.chain.from_iterable(rest)))


def _inputs(found: Recognised, request: memoryview) -> Sequence[bytes | memoryview] | None:
    """The bytes of each input; None if the parser must look at them."""
    inputs, start = found.known.inputs, found.start
    if isinstance(inputs, JsonInputs):
        return inputs.pack(found.lists)
    if inputs.only is not None:
        begin, end = inputs.only
        return (request[start + begin : start + end],)
    return [request[start + begin : start + end] for begin, end in inputs.spans]
