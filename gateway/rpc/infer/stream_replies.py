"""The replies to one request of ModelStreamInfer whose model answers many times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.infer import handler
from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.protocol import infer_response
from mmsup.gateway.rpc.calls.call import Parts
from mmsup.gateway.rpc.infer import infer_messages
from mmsup.gateway.streaming.response_stream import ResponseStream

FINAL: Final = "triton_final_response"


async def deliver_all(
    responses: ResponseStream,
    dispatched: DispatchedRequest,
    parsed: ParsedRequest,
    deliver: Callable[[Parts], Awaitable[None]],
) -> None:
    """Deliver each response when it comes, as a ModelInferResponse whose memory is used until that returns."""
    try:
        while (result := await responses.next()) is not None:
            present = {each.name for each in result.outputs}
            wanted = [each for each in parsed.request.outputs if each.spec.name in present]
            context = handler.response_context(dispatched, parsed)
            tensors = infer_response.wanted_tensors(context, wanted, result.outputs)
            await deliver(infer_messages.response_parts(_origin(dispatched, parsed), tensors, {FINAL: False}))
    except BaseException as error:
        responses.record_end(error)
        raise


def final_reply(dispatched: DispatchedRequest, parsed: ParsedRequest) -> Parts:
    """The reply without outputs that follows the last one."""
    return infer_messages.response_parts(_origin(dispatched, parsed), (), {FINAL: True})


def _origin(dispatched: DispatchedRequest, parsed: ParsedRequest) -> tuple[str, str, str]:
    return dispatched.spec.name, dispatched.spec.version, parsed.request.id
