"""The gRPC server of a gateway: finds the method of each call, and makes what serves it."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from mmsup.gateway.http2.stream import StreamHandler
from mmsup.gateway.http2.streams import STREAM_WINDOW
from mmsup.gateway.infer.handler import InferHandler
from mmsup.gateway.observability.controller_status import CallController, ControllerStatus
from mmsup.gateway.rpc.calls import call, status
from mmsup.gateway.rpc.calls.call import RpcCall
from mmsup.gateway.rpc.calls.call_stream import CallStream
from mmsup.gateway.rpc.calls.message_framing import ACCEPTED, ENCODINGS
from mmsup.gateway.rpc.calls.messages import HEALTH, INFERENCE, REFLECTIONS, Message, Method, methods
from mmsup.gateway.rpc.calls.peer import RpcPeer
from mmsup.gateway.rpc.calls.receive_budget import ReceiveBudget
from mmsup.gateway.rpc.calls.receive_memory import ReceiveMemory
from mmsup.gateway.rpc.infer import infer_messages
from mmsup.gateway.rpc.infer.call_handlers import (
    ModelInferCall,
    ModelStreamInferCall,
    PingPongCall,
    UnaryCall,
    WatchCall,
)
from mmsup.gateway.rpc.infer.infer_call import InferCall, InferContext
from mmsup.gateway.rpc.infer.known_messages import KnownMessages
from mmsup.gateway.rpc.services import reflection_service
from mmsup.gateway.rpc.services.health_service import HealthService
from mmsup.gateway.rpc.services.inference_service import InferenceService
from mmsup.ipc.errors import MmsupError
from mmsup.ipc.rpc.header_literals import Headers

ENDS_AT_ERROR: Final = b"triton_grpc_error"


class RpcServer:
    def __init__(self, inference: InferHandler, call_controller: CallController) -> None:
        router = inference.router
        known = KnownMessages()
        self._infer_contexts = [InferContext(inference, known, is_local=is_local) for is_local in (False, True)]
        self._limit_bytes = router.configuration.max_body_bytes
        self._memory = ReceiveMemory(ReceiveBudget(router.configuration.max_request_bytes))
        controller_status = ControllerStatus(call_controller)
        self._service = InferenceService(
            router, inference.counters, controller_status, call_controller, inference.regions
        )
        self.health = HealthService(router.status)
        self._methods: dict[bytes, tuple[str, str, Method]] = {}
        for service in (INFERENCE, HEALTH, *REFLECTIONS):
            for name, method in methods(service).items():
                self._methods[f"/{service}/{name}".encode()] = service, name, method

    def open_stream(self, stream: CallStream, *, peer: RpcPeer) -> StreamHandler:
        """The handler of a stream that a client has just opened."""
        headers = stream.headers
        if not call.is_grpc(headers):
            call.refuse_http(stream)
            return DeadStream()
        path = call.header(headers, b":path")
        found = self._methods.get(path)
        encoding = call.header(headers, b"grpc-encoding") or b"identity"
        if encoding not in ENCODINGS:
            text = f"grpc-encoding '{encoding.decode('latin-1'):.40}' is not known"
            stream.send_headers(call.OK_HEADERS)
            stream.end(status.trailers(status.UNIMPLEMENTED, text, (b"grpc-accept-encoding", ACCEPTED)))
            return DeadStream()
        if found is None:
            stream.send_headers(call.OK_HEADERS)
            text = f"there is no method {path.decode('latin-1'):.200}"
            stream.end(status.trailers(status.UNIMPLEMENTED, text))
            return DeadStream()
        service, name, method = found
        made = RpcCall(stream, self._memory, self._limit_bytes, STREAM_WINDOW if method.streams_requests else 0)
        try:
            self._handle(made, headers, (service, name, method), peer=peer)
        except MmsupError as error:
            made.handler = DeadCall()
            made.fail(error)
        return made

    def _handle(self, made: RpcCall, headers: Headers, found: tuple[str, str, Method], *, peer: RpcPeer) -> None:
        """Set the handler of a call; CallerError for a deadline that is none."""
        service, name, method = found
        timeout_ns = call.timeout_ns(headers)
        timeout_s = timeout_ns / 1e9 if timeout_ns is not None else None
        deadline_ns = time.monotonic_ns() + timeout_ns if timeout_ns is not None else 0
        context = self._infer_contexts[peer.is_local]
        if name == "ModelInfer":
            made.handler = ModelInferCall(made, partial(InferCall, context, deadline_ns))
        elif name == "ModelStreamInfer":
            ends_at_error = call.header(headers, ENDS_AT_ERROR).lower() == b"true"
            make_infer = partial(InferCall, context, 0)
            made.handler = ModelStreamInferCall(made, make_infer, ends_at_error=ends_at_error, timeout_s=timeout_s)
        elif service in REFLECTIONS:
            answer = partial(reflection_service.answer, reply_class=method.reply)
            made.handler = PingPongCall(made, method.request, answer)
        elif name == "Watch":
            made.handler = WatchCall(made, method.request, self.health.watch)
        else:
            made.handler = UnaryCall(made, partial(self._answer, found, peer=peer), timeout_s)

    async def _answer(self, found: tuple[str, str, Method], message: bytes, *, peer: RpcPeer) -> Message:
        service, name, method = found
        request = infer_messages.parse(method.request, message)
        if service == HEALTH:
            return self.health.check(request)
        return await self._service.handle(name, request, peer)


class DeadStream:
    """Of a stream that was answered when it was opened."""

    def on_data(self, data: memoryview) -> None: ...

    def on_end(self) -> None: ...

    def on_reset(self) -> None: ...

    def on_sent(self) -> None: ...

    def on_retire(self) -> None: ...

    def on_tick(self, now_s: float) -> None: ...


class DeadCall:
    """Of a call that was refused when it was opened."""

    def on_message(self, message: bytes) -> None: ...

    def on_half_close(self) -> None: ...

    def on_cancel(self) -> None: ...

    def on_sent(self) -> None: ...

    def on_retire(self) -> None: ...
