"""Requests as they wait in a worker, without a worker: their links lead nowhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import cast

from mmsup.ipc.messages.data import Form, Infer
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.transport.codec import pack_words
from mmsup.ipc.transport.data_channel import PairEnd
from mmsup.worker.batching.batcher import Work
from mmsup.worker.batching.request_signature import Kinds
from mmsup.worker.serving.gateway_links import Link

IDS = itertools.count(1)
FAR_NS = 1 << 60
X = TensorSpec("x", "FP32", (1, 4))
KINDS = Kinds()


@functools.cache
def link(identity: bytes = b"g0.1") -> Link:
    """The link of this name, always the same."""
    return Link(identity, cast("PairEnd", None))


def form(
    inputs: Sequence[TensorSpec] = (X,),
    outputs: Sequence[str] = (),
    parameters: Mapping[str, object] | None = None,
    *,
    alone: bool = False,
) -> Form:
    """What requests have in common."""
    return Form(tuple(inputs), tuple(outputs), dict(parameters or {}), alone=alone)


def work(
    of: Form | None = None,
    *,
    deadline_ns: int = FAR_NS,
    arrived_ns: int = 0,
    level: int = 0,
    identity: bytes = b"g0.1",
    number: int = 0,
) -> Work:
    """A request that waits."""
    words = pack_words(of or form())
    request = Infer(number or next(IDS), words, deadline_ns, None, (b"",))
    return Work(link(identity), request, KINDS.of(words), arrived_ns, level)
