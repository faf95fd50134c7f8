"""Messages that are like an earlier one but for the bytes of their tensors, and replies likewise. Pure.

Clients send the same message over and over with other values. `raw_input_contents` is the last field of a
ModelInferRequest, so that such messages begin with the same bytes: these are compared, and neither parsed nor checked
again. A known message is good as long as the model's version and metadata are those that it was checked against.
Strings are never known, since whether they fit their shape can be seen only in their bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mmsup.gateway.infer.handler import ParsedRequest
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.gateway.rpc.infer.infer_messages import RAW_INPUT_TAG, RpcRequest, has_no_raw_contents, varint
from mmsup.ipc.bounded_cache import BoundedCache
from mmsup.ipc.specs import Metadata

BEGIN_LIMIT_BYTES: Final = 4096
"""Of what such messages have in common."""
SAME_LENGTH: Final = 4
"""Known messages of one length."""
LIMIT_BYTES: Final = 8 << 20
"""Of a gateway, all together."""
ENTRY_BYTES: Final = 4096
"""What one takes beside the bytes that it begins with: its document, its job, its reply."""
Parts = list[bytes | memoryview]


class ReplyTemplate:
    """All of a ModelInferResponse but the bytes of its outputs, for replies with one signature and these sizes."""

    __slots__ = ("_parts", "_places", "_signature", "_sizes")

    def __init__(self, signature: bytes, outputs: Sequence[OutputTensor], wanted: Sequence[str], parts: Parts) -> None:
        """`outputs`: of the result. `wanted`: names of those in the reply, in its order, whose `parts` are these."""
        self._signature = signature
        names = [each.name for each in outputs]
        self._places = [names.index(name) for name in wanted]
        self._sizes = [outputs[place].data.nbytes for place in self._places]
        self._parts = [bytes(each) for each in (parts[0], *parts[1::2])]

    def fill(self, signature: bytes, outputs: Sequence[OutputTensor]) -> Parts | None:
        """The parts of the reply with these outputs, None if it is another one."""
        if signature != self._signature:
            return None
        made: Parts = [self._parts[0]]
        for place, size, tag in zip(self._places, self._sizes, self._parts[1:], strict=True):
            data = outputs[place].data
            if data.nbytes != size:
                return None
            made += (tag, data.cast("B"))
        return made


class KnownMessage:
    __slots__ = ("_begin", "_cuts", "_request", "parsed", "reply", "version")

    def __init__(self, begin: bytes, sizes: Sequence[int], request: RpcRequest, parsed: ParsedRequest, version: str):
        """`begin`: the bytes before the first tensor, `sizes` those of the tensors, `version` the one that serves."""
        self._begin = begin
        self._cuts: list[tuple[bytes, int, int]] = []
        at = len(begin)
        for size in sizes:
            tag = RAW_INPUT_TAG + varint(size)
            self._cuts.append((tag, at, at + len(tag) + size))
            at += len(tag) + size
        self._request = request
        self.parsed = parsed
        self.version = version
        self.reply: ReplyTemplate | None = None

    def match(self, message: bytes) -> RpcRequest | None:
        """The request in a message of the same length, if it differs in its tensors alone."""
        if not message.startswith(self._begin):
            return None
        view = memoryview(message)
        blobs: list[bytes | memoryview] = []
        for tag, at, end in self._cuts:
            if not message.startswith(tag, at):
                return None
            blobs.append(view[at + len(tag) : end])
        first = self._request
        return RpcRequest(first.model, first.version, first.id, first.document, blobs)

    def renew(self, parsed: ParsedRequest, version: str) -> None:
        """The model has changed, and the message was checked anew."""
        self.parsed, self.version, self.reply = parsed, version, None

    def is_good_for(self, version: str, metadata: Metadata) -> bool:
        return self.version == version and self.parsed.metadata is metadata


class KnownMessages:
    """One per gateway process."""

    def __init__(self) -> None:
        self._by_length: BoundedCache[int, tuple[KnownMessage, ...]] = BoundedCache(
            limit_bytes=LIMIT_BYTES, size_bytes=lambda _, known: len(known) * (BEGIN_LIMIT_BYTES + ENTRY_BYTES)
        )

    def find(self, message: bytes) -> tuple[KnownMessage, RpcRequest] | None:
        for known in self._by_length.get(len(message)) or ():
            request = known.match(message)
            if request is not None:
                return known, request
        return None

    def add(self, message: bytes, request: RpcRequest, parsed: ParsedRequest, version: str) -> KnownMessage | None:
        """Know a message that was parsed and checked; None for one that is not to be known."""
        if parsed.uses_regions or any(each.datatype == "BYTES" for each in parsed.job.inputs) or parsed.job.parameters:
            return None
        sizes = [len(each) for each in request.blobs]
        tail = b"".join(part for each in request.blobs for part in (RAW_INPUT_TAG, varint(len(each)), each))
        begin = message[: len(message) - len(tail)]
        if not sizes or len(begin) > BEGIN_LIMIT_BYTES or not message.endswith(tail):
            return None  # typed contents, or fields in another order
        if not has_no_raw_contents(begin):
            return None  # its end is no tensor, but a part of another field that looks like one
        others = [each for each in self._by_length.get(len(message)) or () if each.match(message) is None]
        known = KnownMessage(begin, sizes, request.without_blobs(), parsed, version)
        self._by_length.add(len(message), (known, *others[: SAME_LENGTH - 1]))
        return known
