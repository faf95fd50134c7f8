"""One known request in flight: sent as a packed record, answered from constant bytes and the outputs of its reply.

Anything but the expected reply (another reply, a deadline, the exit of the worker, the client's leaving) makes it an
ordinary request first, as if it had been sent as one: its owner's `materialise`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from mmsup.gateway.dispatch.in_flight import InFlightRequest
from mmsup.gateway.dispatch.worker_link import WorkerLink
from mmsup.gateway.http.response_bytes import head_end
from mmsup.gateway.infer.known_request import JsonInputs, PackedRequest
from mmsup.ipc import failpoints


class RequestOwner(Protocol):
    """The connection's pipeline, as its known requests see it."""

    answered: PackedInFlight | None
    """The entry of its last known request, which is done with."""

    def deliver_known(self, data: bytes, request: PackedInFlight) -> bool:
        """Write the response to its request; True if it is done with it, else it calls `close` later."""
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
    """Made by `send`, with the link's next id. The next request of a connection takes the entry of the last one over,
    if it is of the same kind and goes to the same worker."""

    __slots__ = ("deadline_ns", "found", "is_answered", "known", "link", "number", "owner", "record", "started_ns")

    def __init__(self, found: Recognised, owner: RequestOwner, link: WorkerLink) -> None:
        self.found = found
        self.known = found.known
        self.owner = owner
        self.link = link
        self.number = self.started_ns = self.deadline_ns = 0
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
    def finish(replies: Sequence[tuple[PackedInFlight, tuple[int, int, int, int, int, int], list[bytes]]]) -> None:
        """Count and answer these requests of one link. Counted first: who has the response finds it in the counters."""
        known = replies[0][0].known
        now_ms = known.counters.record_known(replies, time.monotonic_ns())
        sizes = known.router.output_sizes
        if known.served_by in sizes.spans:
            sizes.observe_inline(known.served_by, len(replies))
        date, written = head_end(now_ms // 1000), 0
        for request, _, outputs in replies:
            request.is_answered = True
            found = request.found
            response = found.known.response
            constant = response.constant
            if constant is None or found.json_id or found.echo_id:
                data = response.render(outputs, date, found.json_id, found.echo_id)
            else:
                data = b"".join((constant[0], date, constant[1], *outputs))
            written += request.owner.deliver_known(data, request)
        if written:
            known.router.admission.leave(known.model, 0, written)

    def close(self) -> None:
        """Its response, which the client had to be waited for, is written; or its client is gone."""
        self.known.router.admission.leave(self.known.model, 0)


def send(found: Recognised, request: memoryview, owner: RequestOwner, started_ns: int = 0) -> PackedInFlight | None:
    """Send the request in these bytes, of which the head arrived then, by default now. None if it is not admitted now,
    or for the parser. Its route must be plain."""
    known, start = found.known, found.start
    route, only = known.route, known.inputs.only
    admission, model = known.router.admission, known.model
    held = admission.requests_by_model.get(model, 0)
    if held >= route.spec.max_queue or held + admission.open_requests >= admission.max_requests:
        return None  # as `try_admit`
    data = None
    if only is None and (data := _inputs(found, request)) is None:
        return None
    admission.requests_by_model[model] = held + 1
    admission.open_requests += 1
    links = route.links
    link = links[0] if len(links) == 1 else min(links, key=WorkerLink.load)
    table = link.in_flight
    table.last_id = number = table.last_id + 1
    made = owner.answered
    if made is None or made.found is not found or made.link is not link:
        made = PackedInFlight(found, owner, link)
    made.is_answered = False
    made.number = number
    made.started_ns = started_ns = started_ns or time.monotonic_ns()
    made.deadline_ns = deadline_ns = started_ns + known.deadline_ns
    parts, number_bytes, deadline_bytes = known.record_parts, number.to_bytes(8, "big"), deadline_ns.to_bytes(8, "big")
    if only is not None:
        only_data = request[start + only[0] : start + only[1]]
        record = b"".join((parts[0], number_bytes, parts[1], deadline_bytes, parts[2], only_data))
    else:
        rest = itertools.zip_longest(parts[2:], data or (), fillvalue=b"")  # without inputs there is one part
        record = b"".join((parts[0], number_bytes, parts[1], deadline_bytes, *itertools.chain.from_iterable(rest)))
    made.record = record
    if not table.requests:
        link.on_first_request()
    table.requests[number] = made
    channel = link.channel
    channel.outgoing.append(record)
    if not channel.is_flush_scheduled:
        channel.schedule_flush()
    if failpoints.armed:
        link.on_sent()
    return made


def _inputs(found: Recognised, request: memoryview) -> Sequence[bytes | memoryview] | None:
    """The bytes of each input; None if the parser must look at them."""
    inputs, start = found.known.inputs, found.start
    if isinstance(inputs, JsonInputs):
        return inputs.pack(found.lists)
    return [request[start + begin : start + end] for begin, end in inputs.spans]
