"""Requests as they wait in a worker, without a worker: their links lead nowhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

from mmsup.ipc.messages.data import Infer, InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_signature
from mmsup.ipc.transport.data_channel import DataChannel
from mmsup.worker.batching.batcher import QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignatureCache
from mmsup.worker.serving.gateway_links import GatewayLink

IDS = itertools.count(1)
FAR_NS = 1 << 60
X = TensorSpec("x", "FP32", (1, 4))
KINDS = RequestSignatureCache()


@functools.cache
def link(identity: bytes = b"g0.1") -> GatewayLink:
    """The link of this name, always the same."""
    return GatewayLink(identity, cast("DataChannel", None))


def form(
    inputs: Sequence[TensorSpec] = (X,),
    outputs: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    *,
    alone: bool = False,
) -> InferSignature:
    """What requests have in common."""
    return InferSignature(tuple(inputs), tuple(outputs), dict(parameters or {}), runs_alone=alone)


def work(
    of: InferSignature | None = None,
    *,
    deadline_ns: int = FAR_NS,
    arrived_ns: int = 0,
    level: int = 0,
    identity: bytes = b"g0.1",
    number: int = 0,
) -> QueuedRequest:
    """A request that waits."""
    words = pack_signature(of or form())
    request = Infer(number or next(IDS), words, deadline_ns, None, (b"",))
    return QueuedRequest(link(identity), request, KINDS.get(words), arrived_ns, level)
