"""Serves one inference of a fast connection, from its parsed head to the bytes of its response, without aiohttp.

A FastInfer is used in this order: `open`, `start` when the body is complete, then `close` when the bytes of the
response are in the socket, or `cancel` if the client disconnects before. It calls `deliver` once. It makes no task
unless it must wait: for a larger output buffer, another worker, or a response that takes long to build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest, adopt
from mmsup.gateway.dispatch.in_flight import RequestEvent
from mmsup.gateway.http import response_bytes
from mmsup.gateway.http.error_status import CLOSING
from mmsup.gateway.http.request import ID_HEADER
from mmsup.gateway.http.response_bytes import Parts
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import InferHandler, ParsedRequest
from mmsup.gateway.infer.head_cache import ParsedHead
from mmsup.gateway.infer.known_in_flight import PackedInFlight
from mmsup.gateway.infer.known_request import KnownJsonRequest, KnownRequest
from mmsup.gateway.infer.known_request_cache import KnownRequestCache
from mmsup.gateway.infer.response_template import make_template
from mmsup.gateway.observability.request_counters import RequestTimer
from mmsup.gateway.protocol import infer_response, json_template
from mmsup.ipc.messages.data import InferReply

JOIN_LIMIT_BYTES: Final = 1 << 16
"""Responses up to this size are copied once and sent in one piece."""
Deliver = Callable[[Parts, bool], None]
"""Gets the response, in memory that may be freed after `close`, and whether the connection ends with it."""


class FastInfer:
    is_local = False
    # fmt: off
    __slots__ = (
        "_deliver", "_dispatched", "_handler", "_known", "_known_requests", "_parsed", "_task",
        "_timer", "body", "echo_id", "head", "request_id",
    )
    # fmt: on

    def __init__(
        self,
        infer_handler: InferHandler,
        known_requests: KnownRequestCache,
        head: ParsedHead,
        echo_id: str,
        deliver: Deliver,
    ) -> None:
        """`echo_id`: the client's own id in the head, which the response repeats."""
        self._handler = infer_handler
        self._known_requests = known_requests
        self.head = head
        self._deliver = deliver
        self._timer = RequestTimer(infer_handler.counters, head.model, head.version)
        self._dispatched: DispatchedRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._known: KnownRequest | None = None
        self._parsed: ParsedRequest | None = None
        self.echo_id = self.request_id = echo_id
        self.body = _EMPTY
        """The buffer for the body, which starts at `BodyLayout.start`; none of a request that was adopted."""

    @property
    def model(self) -> str:
        return self.head.model

    def open(self) -> bool:
        """Find a worker and a buffer for the body. False if something must be waited for; MmsupError if it cannot."""
        head = self.head
        dispatched = self._handler.router.try_open(head.model, head.version)
        if dispatched is None:
            return False
        self._dispatched = dispatched
        if head.is_fast_to_parse or not handler.is_slow_to_parse(head.layout, dispatched.metadata):
            buffer = dispatched.try_allocate(head.buffer_bytes)
            if buffer is not None:
                self.body = buffer
                self._timer.version = dispatched.spec.version
                return True
        self.close()
        return False

    def start(self) -> None:
        """The body is complete: parse it and send the request to the worker."""
        dispatched = self._dispatched
        assert dispatched is not None, "a request is started before it is opened"
        try:
            parsed = self._parsed = self._parse(dispatched)
            dispatched.request_id = self.request_id = parsed.request.id or self.request_id
            if parsed.request.timeout_us:
                handler.apply_timeout(dispatched, parsed, self._timer)
            is_slow = dispatched.spec.response_cache or not parsed.is_cacheable
            if is_slow or not dispatched.try_infer(parsed.job, self._on_event):
                self._finish_in_task(None)
        except Exception as error:  # noqa: BLE001 - the outermost level of a request: the client gets an answer
            self.fail(error)

    def adopt(self, request: PackedInFlight) -> None:
        """Go on with a known request that was sent, as if it had been sent by `start`."""
        known, head = request.known.known, self.head
        parsed = known.with_inputs(request.inputs(), request.found.json_id)
        self._known, self._parsed = known, parsed
        self._timer.started_ns, self._timer.version = request.started_ns, known.version
        self.request_id = parsed.request.id or self.request_id
        self._dispatched = dispatched = DispatchedRequest(
            self._handler.router, request.link, head.version, request.deadline_ns
        )
        dispatched.request_id = self.request_id
        adopt(dispatched, request.number, parsed.job, self._on_event, request.started_ns)

    # Parsing.

    def _parse(self, dispatched: DispatchedRequest) -> ParsedRequest:
        head = self.head
        if head.has_cacheable_json:
            return self._parse_binary(dispatched)
        if head.has_cacheable_text:
            return self._parse_json(dispatched)
        return handler.parse_request(self, dispatched.metadata, self.body, head.layout)

    def _parse_binary(self, dispatched: DispatchedRequest) -> ParsedRequest:
        """A short JSON part before binary tensors: parsed once and then known by its bytes."""
        head, metadata = self.head, dispatched.metadata
        json_id, text = json_template.cut_id(bytes(self.body[head.layout.start : head.json_end]))
        key = (head, text, bool(json_id))
        known = self._known_requests.get(key, dispatched.spec.version, metadata)
        if known is not None:
            self._known = known
            return known.parsed.with_job(known.parsed.job, json_id) if json_id else known.parsed
        parsed = handler.parse_request(self, metadata, self.body, head.layout)
        if not parsed.is_cacheable:
            return parsed
        if any(each.datatype == "BYTES" for each in parsed.job.inputs):
            return parsed  # whether strings fit their shape can be seen only in the bytes of each request
        if json_id and not json_template.takes_id(bytes(self.body[head.layout.start : head.json_end])):
            return parsed
        self._known = KnownRequest(parsed, dispatched.spec.version, head.text + text if head.text else b"")
        self._known_requests.put(key, self._known)
        return parsed

    def _parse_json(self, dispatched: DispatchedRequest) -> ParsedRequest:
        """A body of JSON alone: if only its numbers are new, only these are parsed."""
        head, metadata = self.head, dispatched.metadata
        parts = json_template.split_template(bytes(self.body))
        if parts is None:
            return handler.parse_request(self, metadata, self.body, head.layout)
        json_id, text = json_template.cut_id(parts[0][0])
        key = (head.model, head.version, bool(json_id), text, *parts[0][1:])
        known = self._known_requests.get(key, dispatched.spec.version, metadata)
        if isinstance(known, KnownJsonRequest) and (parsed := known.with_data(parts[1], json_id)) is not None:
            self._known = known
            return parsed
        parsed = handler.parse_request(self, metadata, self.body, head.layout)
        names = json_template.input_names(parts[0])
        if (
            names is None
            or known is not None
            or not parsed.is_cacheable
            or (json_id and not json_template.takes_id(bytes(self.body)))
        ):
            return parsed
        self._known = KnownJsonRequest(parsed, dispatched.spec.version, names, b"".join((text, *parts[0][1:])))
        self._known_requests.put(key, self._known)
        return parsed

    # The response.

    def _on_event(self, event: RequestEvent) -> None:
        dispatched, parsed, known = self._dispatched, self._parsed, self._known
        assert dispatched is not None, "an event came for a request that was not started"
        assert parsed is not None, "an event came for a request that was not started"
        try:
            if type(event) is not InferReply or event.needed_bytes:
                self._finish_in_task(event)
                return
            in_flight = dispatched.in_flight
            signature = in_flight.signature if in_flight is not None else None
            template = known.response if known is not None else None
            json_id = parsed.request.id if known is not None and known.has_id else ""
            if template is not None and signature is not None and template.matches(signature, event.locations):
                response = template.render(event.locations, response_bytes.head_end(), json_id, self.echo_id)
                self._timer.finish(event, parsed.inference_count)
                if self.body and known is not None and (known.packed is None or not known.packed.route.is_plain):
                    self._known_requests.pack(known, self.head, self.body[self.head.layout.start :], signature)
                self._deliver([response], False)  # noqa: FBT003 - hot
                return
            result = dispatched.result(event)
            built = handler.build_response(dispatched, parsed, result)
            if built is None:
                self._finish_in_task(event)
                return
            self._timer.finish(event, parsed.inference_count)
            if known is not None and signature is not None and built.size <= JOIN_LIMIT_BYTES:
                known.response = make_template(signature, parsed.request.outputs, built, event.locations, json_id)
                known.packed = None
            self._send(built)
        except Exception as error:  # noqa: BLE001 - as in `start`
            self.fail(error)

    def _send(self, built: infer_response.InferResponse) -> None:
        start, body = response_bytes.inference_parts(built, _echo(self.echo_id))
        head = start + response_bytes.head_end()
        if built.size <= JOIN_LIMIT_BYTES:
            self._deliver([b"".join((head, *body))], False)  # noqa: FBT003 - hot
        else:
            self._deliver([head, *body], False)  # noqa: FBT003 - as above

    def fail(self, error: Exception) -> None:
        shown = handler.client_error(error)
        self._timer.fail(error)
        self._deliver([response_bytes.error_bytes(shown, self.request_id, _echo(self.echo_id))], shown.code in CLOSING)

    def _finish_in_task(self, event: RequestEvent | None) -> None:
        """Wait for the rest in a task; `event` is None if the request was not sent."""
        self._task = asyncio.get_running_loop().create_task(self._finish(event), name="infer")

    async def _finish(self, event: RequestEvent | None) -> None:
        dispatched, parsed = self._dispatched, self._parsed
        assert dispatched is not None, "a request waits before it is opened"
        assert parsed is not None, "a request waits before its body is parsed"
        try:
            if parsed.uses_regions:
                built = await self._handler.serve_regions(dispatched, parsed, self._timer, is_local=self.is_local)
            else:
                built = await self._handler.finish(dispatched, parsed, self._timer, event)
        except Exception as error:  # noqa: BLE001 - as in `start`
            self._task = None
            self.fail(error)
            return
        self._task = None
        self._send(built)

    # The end.

    def cancel(self) -> None:
        """The client disconnected: no response is delivered."""
        self._deliver = _discard
        self._timer.fail(asyncio.CancelledError())
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(lambda _: self.close())
        else:
            self.close()

    def close(self) -> None:
        """Free everything; none of its memory may be used any more."""
        dispatched, self._dispatched = self._dispatched, None
        if dispatched is not None:
            self.body = _EMPTY
            dispatched.close()


class LocalInfer(FastInfer):
    """Of a listener that only this machine can reach."""

    __slots__ = ()
    is_local = True


_EMPTY: Final = memoryview(b"")


def _echo(echo_id: str) -> dict[str, str]:
    return {ID_HEADER: echo_id} if echo_id else {}


def _discard(_: Parts, __: bool) -> None:
    """Gets the response to a client that has disconnected."""
