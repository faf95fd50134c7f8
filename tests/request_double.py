"""Queued requests of a worker without a worker: their links lead nowhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.worker.batching.priority_queue import QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignatureCache
from mmsup.worker.serving.gateway_links import GatewayLink
from mmsup.worker.serving.pending_results import WorkerRequest

IDS = itertools.count(1)
FAR_NS = 1 << 60
X = TensorSpec("x", "FP32", (1, 4))
SIGNATURES = RequestSignatureCache()


class _NoPair:
    def send(self, frame: bytes) -> bool:
        raise NotImplementedError


@functools.cache
def link(identity: bytes = b"g0.1") -> GatewayLink:
    """The link of this name, always the same."""
    return GatewayLink(identity, cast("DataChannel", _NoPair()))


def signature(
    inputs: Sequence[TensorSpec] = (X,),
    outputs: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    *,
    runs_alone: bool = False,
) -> InferSignature:
    return InferSignature(tuple(inputs), tuple(outputs), dict(parameters or {}), runs_alone=runs_alone)


def queued(
    of: InferSignature | None = None,
    *,
    deadline_ns: int = FAR_NS,
    arrived_ns: int = 0,
    priority: int = 0,
    identity: bytes = b"g0.1",
    number: int = 0,
) -> WorkerRequest:
    packed = pack_signature(of or signature())
    message = Infer(number or next(IDS), packed, deadline_ns, None, (b"",))
    return QueuedRequest(link(identity), message, SIGNATURES.get(packed), arrived_ns, priority)
