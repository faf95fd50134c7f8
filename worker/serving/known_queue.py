"""Recognises requests by bytes that are known from an earlier one, and keeps them in order of arrival until they run.

A request is *known* if its signature is that of a request that ran before, by itself and with outputs that travelled in
the reply, and if its inputs came in the record with the sizes that follow. Nothing is made of it but its arrays. Pure.

Known requests wait only while nothing else does. As soon as anything else comes from a gateway, all that wait become
ordinary requests (`release`): so whatever chooses among requests finds all of them in the one queue.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.messages.data import Infer
from mmsup.ipc.specs import Metadata
from mmsup.ipc.transport.codec import INFER
from mmsup.worker.batching.priority_queue import QueuedRequest
from mmsup.worker.batching.request_signature import RequestSignature
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.serving.gateway_links import GatewayLink

SIGNATURES_LIMIT: Final = 1024
SIGNATURES_LIMIT_BYTES: Final = 4 << 20
"""Of the packed signatures, which hold the parameters of a request: one may be as long as a frame."""
DEADLINE: Final = 3
INPUTS: Final = 5
"""Places in an Infer's record, `[kind, id, signature, deadline, output buffer, *inputs]`."""
OUTPUT_NS: Final = 6
OUTPUTS: Final = 9
"""Places in a reply's record, `[kind, id, signature, queue, input, infer, output, batch, rows, *outputs]`."""
_BEFORE_ANY: Final = -1 << 64

KnownOutput: TypeAlias = "tuple[str, np.dtype[Any], tuple[int, ...]]"
"""Name, dtype and shape."""
WaitingRequest: TypeAlias = "tuple[GatewayLink, list[Any], KnownSignature, int]"
"""Link, record, signature, monotonic time of its arrival. A plain tuple: any class takes several times as long."""


class KnownSignature:
    """What all requests with the same signature have in common, and the reply that the last of them got."""

    __slots__ = (
        "inputs",
        "length",
        "names",
        "outputs",
        "reply",
        "reply_length",
        "reported_rows",
        "rows",
        "signature",
        "sizes",
        "wanted",
    )

    def __init__(self, signature: RequestSignature, sizes: tuple[int, ...], model: Metadata) -> None:
        """`sizes`: of the inputs."""
        self.signature = signature
        self.rows = signature.rows
        self.reported_rows = signature.rows if model.max_batch_size else 1
        self.wanted = signature.outputs
        self.names = signature.outputs or tuple([each.name for each in model.outputs])
        self.sizes = sizes
        self.length = INPUTS + len(sizes)
        """Fields of a record."""
        self.inputs = tuple(
            [(each.name, each.shape, each.dtype, place) for place, each in enumerate(signature.inputs, INPUTS)]
        )
        """Name, shape, dtype and place in the record of each."""
        self.reply = b""
        """The packed signature of the reply."""
        self.outputs: list[KnownOutput] = []
        """What `reply` describes."""
        self.reply_length = 0
        """Fields of the record of a reply: more than of one without outputs."""

    def learn_reply(self, result: Arrays, reply: bytes) -> None:
        """`reply` describes these outputs, which were found good."""
        self.reply = reply
        self.outputs = [(name, array.dtype, array.shape) for name, array in result.items()]
        self.reply_length = OUTPUTS + len(self.outputs)


class KnownQueue:
    """Those that wait, and the signatures by which they are recognised."""

    def __init__(self, model: Metadata, default_priority: int, *, is_enabled: bool) -> None:
        """`is_enabled`: false where requests may not simply wait for their turn, because of policies for queues."""
        self.waiting: list[WaitingRequest] = []
        """Invariant: nothing is queued elsewhere while any is here."""
        self._is_enabled = is_enabled
        self._default_priority = default_priority
        self._model = model
        self._signatures: BoundedCache[bytes, KnownSignature] = BoundedCache(
            SIGNATURES_LIMIT, SIGNATURES_LIMIT_BYTES, lambda packed, _: len(packed)
        )
        self._newest: dict[GatewayLink, int] = {}
        """The highest id of each link that was taken. A lower one is not, since it may wait already."""

    def take(self, link: GatewayLink, records: list[Any], now_ns: int) -> bool:
        """Keep the requests of a frame until they run; False if any of its records is not known, and none was kept."""
        signatures, newest = self._signatures.recent, self._newest.get(link, _BEFORE_ANY)
        found: list[WaitingRequest] = []
        try:
            for record in records:
                known = signatures[record[2]]
                number = record[1]
                if (
                    record[0] != INFER
                    or type(number) is not int
                    or number <= newest
                    or type(record[DEADLINE]) is not int
                    or record[4] is not None
                    or len(record) != known.length
                ):
                    return False
                at = INPUTS
                for size in known.sizes:
                    data = record[at]
                    if type(data) is not bytes or len(data) != size:
                        return False
                    at += 1
                newest = number
                found.append((link, record, known, now_ns))
        except (LookupError, TypeError):  # another signature, or no list, or one that is too short
            return False
        self.waiting += found
        self._newest[link] = newest
        return True

    def release(self) -> list[QueuedRequest[GatewayLink]]:
        """What waits, as ordinary requests in the same order; nothing waits afterwards."""
        released = [self.ordinary(each) for each in self.waiting]
        self.waiting.clear()
        return released

    def ordinary(self, request: WaitingRequest) -> QueuedRequest[GatewayLink]:
        """The same request as it would have been queued."""
        link, record, known, arrived_ns = request
        _, number, packed, deadline_ns, _, *inputs = record
        message = Infer(number, packed, deadline_ns, None, tuple(inputs))
        return QueuedRequest(link, message, known.signature, arrived_ns, self._default_priority)

    def drop_link(self, link: GatewayLink) -> None:
        self.waiting = [each for each in self.waiting if each[0] is not link]
        self._newest.pop(link, None)

    def learn(self, request: QueuedRequest[GatewayLink], result: Arrays, reply: bytes) -> None:
        """A request ran singly, its outputs were found good, and `reply` describes them: all travel in the reply."""
        signature = request.signature
        is_other = signature.runs_alone or request.priority != self._default_priority
        if not self._is_enabled or is_other or not result:
            return
        packed = request.message.signature
        known = self._signatures.get(packed)
        if known is None:
            sizes = [each.size_bytes for each in signature.inputs if each.size_bytes is not None]
            if len(sizes) != len(signature.inputs):
                return  # BYTES, whose elements are parsed one by one
            known = KnownSignature(signature, tuple(sizes), self._model)
            self._signatures.add(packed, known)
        known.learn_reply(result, reply)
