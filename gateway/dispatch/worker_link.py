"""A worker link: sends requests to one worker process, matches the replies, and settles all of them when it exits.

Covers: the requests in flight and their shared memory slots, deadlines, validation of replies, the exit of the worker.
Does not cover: the choice of a link (router.py), retries (dispatched_request.py), extents (link_memory.py), frames
(link_channel.py).

A link is closed once, by the first of: the worker's pidfd (final), a verdict of the controller (which is about to kill
the worker), a violation of the protocol. Replies that arrived before still count; afterwards nothing of this worker is
used. Every request in flight ends exactly once: by a reply or by the close. A caller that leaves, or whose deadline
passes, gets no further event, but the request stays in flight because the worker may still touch its slots.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, Final

from mmsup.gateway.dispatch.in_flight import (
    CloseRecord,
    InFlightRequest,
    InFlightTable,
    KnownReply,
    RequestEvent,
)
from mmsup.gateway.dispatch.link_channel import TOO_SLOW, LinkChannel
from mmsup.gateway.dispatch.link_memory import LinkMemory
from mmsup.gateway.dispatch.reply_validation import (
    NUMBER_BITS,
    TEXT_LIMIT,
    ValidatedSignature,
    validate_reply,
    validate_signature,
)
from mmsup.gateway.dispatch.stream_parts import accept_part
from mmsup.ipc import failpoints
from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.errors import ServerError
from mmsup.ipc.failpoints import failpoint
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.memory.status_page import StatusPageReader
from mmsup.ipc.messages.data import (
    Cancel,
    DeviceRegion,
    GrantBuffer,
    Infer,
    InferReply,
    InferWithRegions,
    ResponsePart,
    StreamCredit,
    TensorLocation,
)
from mmsup.ipc.messages.gateway_control import LinkWorker
from mmsup.ipc.transport.codec import RESULT
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.ipc.transport.zeromq_channel import ZmqGatewayChannel

_ALL_BYTES: Final = frozenset({bytes})
SIGNATURES_LIMIT: Final = 256
SIGNATURES_LIMIT_BYTES: Final = 1 << 20
"""Reply signatures that a link caches."""
_PARSED_FACTOR: Final = 16
"""How much more memory a parsed signature takes than a packed one."""
_PARSED_BYTES: Final = 512
_LIMITS: Final = "the request's own `timeout` or the model's `deadline`, of which the shorter one counts"
EXPIRY_INTERVAL_S: Final = 0.01
"""How late a passed deadline may be noticed. One scan of the requests in flight costs less than a timer for each."""


class WorkerLink:
    """The link to one worker process, that is to one generation of an instance."""

    def __init__(
        self,
        message: LinkWorker,
        channel: DataChannel | ZmqGatewayChannel,
        memory: LinkMemory,
        descriptors: tuple[int, int],
    ) -> None:
        """`descriptors`: the worker's pidfd, which the link owns, and its status page, which is mapped and closed."""
        self.worker_id = message.instance, message.generation
        self.spec = message.spec
        self.metadata = message.metadata
        self.memory = memory
        self.channel = LinkChannel(channel, self._on_records)
        self.in_flight = InFlightTable()
        self.reserved_requests = 0
        """Requests routed here that are not sent yet, because their bodies are still being received."""
        self.is_unrestricted = True
        """Requests may be sent at once: the link is open and no request of its model is on a poison list."""
        self.on_close: Callable[[WorkerLink], None] = lambda _: None
        """Called once, after every request has been settled."""
        self.close_record: CloseRecord | None = None
        """Set when the link is closed."""
        self._signatures: BoundedCache[bytes, ValidatedSignature] = BoundedCache(
            SIGNATURES_LIMIT, SIGNATURES_LIMIT_BYTES, _cached_bytes
        )
        self.process = _WorkerProcess(*descriptors, self.close)

    @property
    def closed(self) -> bool:
        return self.close_record is not None

    def load(self) -> int:
        """Requests in flight or still being received."""
        return len(self.in_flight.requests) + self.reserved_requests

    # Sending.

    def submit(
        self,
        signature: bytes,
        deadline_ns: int,
        locations: tuple[TensorLocation, ...],
        input_slots: list[Slot],
        output_slot: Slot | None,
        on_event: Callable[[RequestEvent], None],
        client_id: str,
        regions: tuple[DeviceRegion, ...] = (),
    ) -> InFlightRequest:
        """Send a request that was reserved here. `on_event` gets its reply, its deadline, or the worker's exit."""
        assert self.close_record is None, "a request was submitted to a closed link"
        self.in_flight.last_id = number = self.in_flight.last_id + 1
        grant = (output_slot.segment, output_slot.offset, output_slot.size) if output_slot is not None else None
        message = Infer(number, signature, deadline_ns, grant, locations)
        if regions:
            message = InferWithRegions(number, signature, deadline_ns, grant, locations, regions)
        request = InFlightRequest(message, input_slots, on_event, output_slot, client_id, time.monotonic_ns())
        self.reserved_requests -= 1
        if not self.in_flight.requests:
            self.on_first_request()
        self.in_flight.requests[number] = request
        self.channel.send(message)
        if failpoints.armed:
            self.on_sent()
        return request

    def on_first_request(self) -> None:
        """Called before a request is put into the table where no other is in flight."""
        self.channel.last_progress_s = time.monotonic()
        table = self.in_flight
        if table.expiry_timer is None:
            loop = asyncio.get_running_loop()
            table.expiry_timer = loop.call_later(EXPIRY_INTERVAL_S, self._expire_requests)

    def on_sent(self) -> None:
        """Called after each request where failpoints are armed."""
        failpoint("gateway.sent", self.spec.name)

    def abandon(self, request: InFlightRequest) -> None:
        """The caller left or the deadline passed: cancel it at the worker. Its slots are freed at the reply."""
        request.notified = True
        if not self.closed and not request.abandoned:
            request.abandoned = True
            self.channel.send(Cancel(request.message.id))
            if self.in_flight.calls is not None:
                self.in_flight.calls.on_abandoned(request.message.id)

    def grant(self, request: InFlightRequest, slot: Slot) -> None:
        """Give the worker a larger output buffer for a result that it holds, unless it has given up holding it."""
        if request.early_reply is not None:
            self.memory.results.free(slot)
            request.on_event(request.early_reply)
            return
        request.notified = False
        if request.output_slot is not None:
            self.memory.results.free(request.output_slot)
        request.output_slot = slot
        request.larger_grants += 1
        self.channel.send(GrantBuffer(request.message.id, slot.segment, slot.offset, slot.size))
        failpoint("gateway.granted", self.spec.name)

    def _expire_requests(self) -> None:
        table = self.in_flight
        table.expiry_timer = None
        if self.closed or not table.requests:
            return
        now_ns = time.monotonic_ns()
        for each in [each for each in table.requests.values() if each.deadline_ns <= now_ns]:
            request = each.materialise()
            if not request.notified:
                self.abandon(request)
                name = self.spec.name
                text = f"Request timeout expired: model '{name}' did not answer within {_LIMITS}"
                request.on_event(ServerError("deadline_exceeded", text, model=name))
        table.expiry_timer = asyncio.get_running_loop().call_later(EXPIRY_INTERVAL_S, self._expire_requests)

    # Replies.

    def _on_records(self, records: list[Any]) -> None:
        """Process what the worker sent, in order. Replies to known requests are counted and answered together."""
        requests, known = self.in_flight.requests, list[KnownReply]()
        for raw in records:
            if failpoints.armed:
                failpoint("gateway.replied", self.spec.name)
            try:
                request = requests.get(raw[1])
                if request is not None and request.known is not None:
                    form = request.known
                    kind, number, words, queue_ns, input_ns, infer_ns, output_ns, batch, rows, *outputs = raw
                    if (  # with everything that validate_reply() checks
                        words == form.reply_signature
                        and kind == RESULT
                        and type(number) is type(queue_ns) is type(input_ns) is type(infer_ns) is int
                        and type(output_ns) is type(batch) is type(rows) is int
                        and not (queue_ns | input_ns | infer_ns | output_ns | batch | rows) >> NUMBER_BITS
                        and (
                            type(outputs[0]) is bytes and len(outputs[0]) == form.only_size
                            if len(outputs) == 1
                            else _are_whole(outputs, form.output_sizes)
                        )
                    ):
                        del requests[number]
                        known.append((request, (queue_ns, input_ns, infer_ns, output_ns, batch, rows), outputs))
                        continue
            except (TypeError, ValueError, LookupError):
                pass  # it is no record: `decode` reports it
            if known:
                known[0][0].finish(known)
                known.clear()
            reply = self.channel.decode(raw)
            if isinstance(reply, InferReply):
                self._on_reply(reply)
            elif reply is not None:
                calls = self.in_flight.calls
                error = calls.on_record(reply) if calls is not None else "it calls another model"
                if error:
                    self.channel.on_protocol_error(error)
            if self.closed:
                return
        if known:
            known[0][0].finish(known)

    def _on_reply(self, reply: InferReply) -> None:
        found = self.in_flight.requests.get(reply.id)
        if found is None:
            self.in_flight.unexpected_replies += 1
            return
        request = found.materialise()
        packed = reply.signature
        signature = (self._signatures.recent.get(packed) or self._validated_signature(packed)) if packed else None
        error = validate_reply(reply, signature, request.output_slot)
        if request.parts is None:
            request.signature = None if error else signature
        if len(reply.text) > TEXT_LIMIT:
            reply.text = reply.text[:TEXT_LIMIT]
        if type(reply) is ResponsePart:
            error = error or self._on_part(request, reply, signature)
            if not error:
                return
        if error:
            reply = InferReply(reply.id, "bad_worker_reply", f"the worker's answer was not valid: {error}")
        if reply.needed_bytes:
            if request.notified and not request.abandoned:
                self.channel.on_protocol_error("it asks for a grant while one is on its way")
            elif not request.abandoned:
                request.notified = True
                request.on_event(reply)  # stays in flight: its owner grants a larger buffer or abandons it
            return
        del self.in_flight.requests[reply.id]
        if request.output_slot is None and not request.input_slots and not request.notified:
            request.notified = True
            request.on_event(reply)
        else:
            self._complete(request, reply)
        if error:
            self.channel.on_protocol_error(error)

    def _on_part(self, request: InFlightRequest, part: ResponsePart, signature: ValidatedSignature | None) -> str:
        """One response of many; returns what is wrong with it."""
        if not self.metadata.decoupled:
            return "it answers a request many times, and its model is not decoupled"
        number = part.id
        outputs = signature.outputs if signature is not None else ()
        return accept_part(request, part, outputs, lambda taken: self.channel.send(StreamCredit(number, taken)))

    def _validated_signature(self, packed: bytes) -> ValidatedSignature:
        signature = self._signatures.get(packed)
        if signature is None:
            began_s = time.monotonic()
            signature = validate_signature(packed, self.metadata)
            if not self.channel.charge(began_s):
                return ValidatedSignature(b"", error=TOO_SLOW)
            if not signature.error:  # after which the link is closed
                self._signatures.add(packed, signature)
        return signature

    def _complete(self, request: InFlightRequest, reply: InferReply) -> None:
        for slot in request.input_slots:
            self.memory.requests.free(slot)
        if request.output_slot is not None:
            is_read = request.parts is not None or any(isinstance(each, tuple) for each in reply.locations)
            if not request.abandoned and is_read:
                request.output_slot.transition(SlotState.DRAINING)
            else:
                self.memory.results.free(request.output_slot)
                request.output_slot = None
        if request.abandoned:
            return
        if request.notified:
            request.early_reply = reply
        else:
            request.notified = True
            request.on_event(reply)

    # The exit of the worker.

    def close(self) -> None:
        """Process the replies that have arrived, settle all other requests, release everything."""
        if not self.closed:
            self.channel.receive_all()
        if self.close_record is not None:
            return  # closed before, or by what arrived last
        self.close_record = record = CloseRecord()
        self.is_unrestricted = False
        self.channel.close()
        started, executing = self.process.close()
        record.ran_alone = len(executing) == 1
        record.lost_requests = self.in_flight.close(started, executing)
        self.memory.close()
        self.on_close(self)
        failpoint("gateway.link_ended", self.spec.name)


def _are_whole(outputs: list[Any], sizes: list[int]) -> bool:  # msgpack values
    """Whether all of these outputs are bytes, as many as expected."""
    return _ALL_BYTES.issuperset(map(type, outputs)) and [*map(len, outputs)] == sizes


def _cached_bytes(packed: bytes, _: ValidatedSignature) -> int:
    return _PARSED_BYTES + _PARSED_FACTOR * len(packed)


class _WorkerProcess:
    def __init__(self, pidfd: int, page: int, on_exit: Callable[[], None]) -> None:
        self._pidfd = pidfd
        self._page = StatusPageReader(page)
        os.close(page)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, on_exit)

    def executing(self) -> frozenset[int]:
        """Ids of the requests that are executed now, of all gateways."""
        return self._page.executing()

    def live_sequences(self) -> int:
        return self._page.sequences()

    @property
    def pid(self) -> int:
        """Models of a co-location group have the same."""
        with open(f"/proc/self/fdinfo/{self._pidfd}") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))

    def close(self) -> tuple[frozenset[int], frozenset[int]]:
        """Close both. The ids of the requests that started to execute last, and of those in the running batch."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        executing, started = self._page.executing(), self._page.started()
        self._page.close()
        return started, executing
