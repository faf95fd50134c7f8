"""The links of a worker while the code of its model waits for another model: what has come about calls is read, all
else is kept in order for the loop, which handles it when the run has ended.

A link that no call waits for is not read: what comes there stays in the kernel, as during any other long run.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from mmsup.ipc.memory.status_page import StatusPageWriter
from mmsup.ipc.messages.calls import CallReply, GrantCall
from mmsup.ipc.transport.codec import is_about_calls, read_records, unpack_records
from mmsup.ipc.transport.dataclass_codec import WireError
from mmsup.worker.calls.caller import CALLER
from mmsup.worker.calls.model_calls import ModelCalls
from mmsup.worker.calls.transport import CallingRun, CallLink
from mmsup.worker.serving.gateway_links import GatewayLink, GatewayLinks
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.request_handler import RequestHandler
from mmsup.worker.startup.controller_channel import exit_parent_lost

if TYPE_CHECKING:
    from mmsup.ipc.transport.zeromq_channel import ZmqWorkerChannel  # imports zmq, with its threads

EDGE_POLL_S: Final = 0.002
"""How often ZeroMQ is asked while an event loop waits: its descriptor does not say all that has come."""
Deferred = tuple[GatewayLink, list[Any]]
"""Records, not yet read."""


class CallLinks:
    """The CallTransport of one model."""

    def __init__(
        self,
        model: str,
        handler: RequestHandler,
        outbox: Outbox,
        page: StatusPageWriter,
        links: GatewayLinks,
        lifeline: int,
    ) -> None:
        self.model = model
        self._handler = handler
        self._outbox = outbox
        self._page = page
        self._links = links
        self._lifeline = lifeline
        self._deferred: list[Deferred] = []
        self._waits = 0
        """Calls that are waited for."""
        self._run_since_ns = self._wait_since_ns = 0

    @property
    def poll_s(self) -> float:
        return EDGE_POLL_S if self._links.zeromq is not None else 0.0

    def take_deferred(self) -> list[Deferred]:
        """What came beside answers to calls, in order."""
        deferred, self._deferred = self._deferred, []
        return deferred

    def run(self) -> CallingRun | None:
        caller = CALLER.get()
        if caller is not None:
            return CallingRun(caller.link, (caller.number,), is_shared=False, priority=caller.priority)
        executing = self._page.executing()
        found = [
            (request.link, request.message.id, request.signature.priority)
            for request in self._handler.queue.running
            if request.message.id in executing
        ]
        found += [(link, record[1], 0) for link, record, *_ in self._handler.known.waiting if record[1] in executing]
        if not found:
            return None
        link, _, priority = found[0]
        parents = tuple([number for other, number, _ in found if other is link])
        return CallingRun(link, parents, len(parents) < len(executing), priority)

    def receive(self, link: CallLink) -> Sequence[GrantCall | CallReply]:
        assert isinstance(link, GatewayLink), "calls go over the links of the loop"
        zeromq = self._links.zeromq
        return self._receive_zeromq(zeromq, link) if zeromq is not None else self._receive_pair(link)

    def _receive_pair(self, link: GatewayLink) -> list[GrantCall | CallReply]:
        found: list[GrantCall | CallReply] = []
        while (records := _received(link)) is not None:
            found += self._sort(link, records)
        return found

    def _receive_zeromq(self, zeromq: ZmqWorkerChannel, link: GatewayLink) -> list[GrantCall | CallReply]:
        """Frames of all gateways come over one socket, which has to be read until it is empty."""
        found: list[GrantCall | CallReply] = []
        while (packet := zeromq.receive()) is not None:
            sender = self._links.by_identity.get(packet[0])
            if sender is None:
                continue
            records = self._sort(sender, unpack_records(packet[1]))
            found += records if sender is link else []
        return found

    def _sort(self, link: GatewayLink, records: list[Any]) -> list[GrantCall | CallReply]:  # of `unpack_records`
        others = [each for each in records if not is_about_calls(each)]
        if others:
            self._deferred.append((link, others))
        return read_records([each for each in records if is_about_calls(each)])

    def wait(self, link: CallLink, timeout_ms: int) -> None:
        poller = select.poll()
        poller.register(self._lifeline, 0)
        zeromq = self._links.zeromq
        poller.register(link.fileno() if zeromq is None else zeromq.fileno(), select.POLLIN)
        if any(fd == self._lifeline for fd, _ in poller.poll(timeout_ms)):
            exit_parent_lost()

    def begin_wait(self) -> None:
        if not self._waits:
            self._outbox.send_some()
            self._wait_since_ns = now_ns = time.monotonic_ns()
            self._run_since_ns = self._page.calling(now_ns)
        self._waits += 1

    def beat(self) -> None:
        self._page.heartbeat(time.monotonic_ns())

    def end_wait(self) -> None:
        self._waits -= 1
        if not self._waits:
            now_ns = time.monotonic_ns()
            self._page.called(self._run_since_ns + now_ns - self._wait_since_ns, now_ns)


def connect_calls(
    calls: ModelCalls | None,
    model: str,
    handler: RequestHandler,
    outbox: Outbox,
    page: StatusPageWriter,
    links: GatewayLinks,
    lifeline: int,
) -> None:
    """Let the code of this model call others over these links; `calls`: None if its engine cannot."""
    if calls is not None:
        links.model_calls = calls
        links.calls = CallLinks(model, handler, outbox, page, links, lifeline)
        calls.connect(links.calls)


def _received(link: GatewayLink) -> list[Any] | None:
    try:
        return link.receive()
    except WireError:
        return []  # a gateway does not send such
