"""A simulated worker that does with each request what the request's first value says, when the test lets it turn.

Its models answer every input with its values in reverse, the last one replaced by the number of the version: a reply
that belongs to another request, or comes from another version, is recognised by its bytes.
"""

from __future__ import annotations

import contextlib
import enum
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from harness.worker_peer import WorkerPeer
from mmsup.ipc.messages.data import Cancel, GrantBuffer, Infer, InferReply, InferSignature, ReplySignature
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import FRAME_RECORDS, pack_frame, pack_signature, unpack_infer_signature
from mmsup.ipc.transport.control_channel import ChannelClosed

DTYPES: Final = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}
OUTPUT: Final = {"x": "y", "a": "c", "b": "d", "X": "X_out"}
"""Input to output."""


class Do(enum.IntEnum):
    """What the first value of a request orders."""

    ANSWER = 0
    HOLD = 1
    """Answer when the test releases it."""
    HOLD_RUNNING = 2
    """The same, shown on the status page as the running batch."""
    OTHER_SHAPE = 3
    """Answer with the first half of the output."""
    FAIL = 4
    """Answer with an error."""
    ASK_FOR_MORE = 5
    """Answer in a larger buffer that has to be granted."""
    TWICE = 6
    UNKNOWN_FIRST = 7
    """Answer after a reply to a request that nobody made."""
    AS_BATCH = 8
    """Answer as one of a batch of two requests with three rows."""
    NOT_A_NUMBER = 9
    """Answer with NaN and infinity among the values of the first output, if it has such."""
    # What ends the link.
    WRONG_SIZE = 16
    WRONG_NAME = 17
    NO_OUTPUT = 18
    IMPOSSIBLE_TIME = 19
    NEGATIVE_TIME = 20
    TEXT_FOR_BYTES = 21
    TEXT_FOR_TIME = 22
    UNGRANTED_MEMORY = 23
    SHORT_RECORD = 24
    NO_RECORD = 25
    NEGATIVE_NEED = 26
    OWN_CODE = 27
    IMPOSSIBLE_BATCH = 28


LIES: Final = tuple(each for each in Do if each >= Do.WRONG_SIZE)


@dataclass(frozen=True)
class Seen:
    """One request as the worker got it."""

    tag: tuple[int, ...]
    signature: InferSignature


def model_outputs(inputs: Sequence[Array], version: int) -> list[Array]:
    """What the models compute."""
    made = []
    for each in inputs:
        flat = each.reshape(-1)[::-1].copy()
        flat[-1] = version
        made.append(flat.reshape(each.shape))
    return made


class ScriptedWorker(WorkerPeer):
    """One worker of one model version."""

    def __init__(
        self, folder: Path, described: ModelSpec, declared: Metadata, instance: int, process: subprocess.Popen[bytes]
    ) -> None:
        """`process`: whose end the gateway would take for that of the worker."""
        super().__init__(folder, described, instance, declared=declared, process=process)
        self.version = int(described.version)
        self.held: dict[int, tuple[Infer, tuple[int, ...]]] = {}
        """Requests that wait for `release`, by id, with their tags."""
        self.seen: list[Seen] = []
        self.cancelled = 0
        self.events = 0
        """Records received so far."""
        self._asked: dict[int, Infer] = {}
        self._running = 0
        self.is_closed = False
        self.together = True
        """Replies of one turn go out in one frame."""

    def turn(self) -> None:
        """Receive everything that has come and answer what is not held."""
        if self.is_closed:
            return
        with contextlib.suppress(ChannelClosed):  # the gateway has closed the link
            self._hear()
        replies: list[Any] = []  # records, or raw lists for the lies
        while self._records:
            self.events += 1
            record = self._records.popleft()
            if isinstance(record, Infer):
                replies += self._infer(record)
            elif isinstance(record, GrantBuffer):
                replies.append(self._in_buffer(self._asked.pop(record.id), (record.segment, record.offset)))
            elif isinstance(record, Cancel):
                self.cancelled += 1
                self._asked.pop(record.id, None)
                if self.held.pop(record.id, None) is not None:
                    replies.append(InferReply(record.id, "cancelled", "the request was cancelled"))
        self._say_all(replies)

    def release(self, *, backwards: bool = False, at_most: int = 1 << 30) -> None:
        """Answer held requests, in the order in which they came or the reverse."""
        waiting = sorted(self.held.values(), key=lambda each: each[1], reverse=backwards)[:at_most]
        for request, _ in waiting:
            del self.held[request.id]
        ran, self._running = self._running, 0
        self.page.batch_executed(ran)
        self._say_all([self._reply(request) for request, _ in waiting])

    def tags(self) -> set[tuple[int, ...]]:
        """Tags of the held requests."""
        return {tag for _, tag in self.held.values()}

    def _infer(self, request: Infer) -> list[Any]:
        inputs, signature = self._inputs(request)
        values = inputs[0].reshape(-1)
        order, tag = Do(int(values[0])), tuple(int(each) for each in values[1:3])
        self.seen.append(Seen(tag, signature))
        if order in (Do.HOLD, Do.HOLD_RUNNING):
            self.held[request.id] = request, tag
            if order is Do.HOLD_RUNNING:
                self.page.request_started(request.id)
                self._running += 1
            return []
        return self._ordered(order, request)

    def _ordered(self, order: Do, request: Infer) -> list[Any]:
        if order is Do.FAIL:
            return [InferReply(request.id, "inference_failed", "asked to fail", queue_ns=1)]
        if order is Do.ASK_FOR_MORE:
            self._asked[request.id] = request
            return [InferReply(request.id, needed_bytes=2 * sum(each.nbytes for each in self._outputs(request)))]
        reply = self._reply(request, shorter=order is Do.OTHER_SHAPE)
        if order in LIES:
            return [_lie(order, self._reply(replace(request, output_buffer=None)))]
        if order is Do.NOT_A_NUMBER:
            return [_with_nan(reply)]
        if order is Do.TWICE:
            return [reply, reply]
        if order is Do.UNKNOWN_FIRST:
            return [replace(reply, id=reply.id ^ (1 << 40)), reply]
        if order is Do.AS_BATCH:
            return [replace(reply, batch=2, rows=3)]
        return [reply]

    def _inputs(self, request: Infer) -> tuple[list[Array], InferSignature]:
        signature = unpack_infer_signature(request.signature)
        inputs = [
            np.frombuffer(self.bytes_of(place), DTYPES[each.datatype]).reshape(each.shape)
            for each, place in zip(signature.inputs, request.locations, strict=True)
        ]
        return inputs, signature

    def _outputs(self, request: Infer) -> list[Array]:
        return model_outputs(self._inputs(request)[0], self.version)

    def _reply(self, request: Infer, *, shorter: bool = False) -> InferReply:
        inputs, signature = self._inputs(request)
        outputs = model_outputs(inputs, self.version)
        if shorter:
            outputs = [each[..., : each.shape[-1] // 2] for each in outputs]
        names = [OUTPUT[each.name] for each in signature.inputs]
        wanted = signature.outputs or names
        chosen = [(name, outputs[names.index(name)]) for name in wanted]
        if request.output_buffer is not None and sum(each.nbytes for _, each in chosen) > INLINE_LIMIT_BYTES:
            needed = sum(-(-each.nbytes // 64) * 64 for _, each in chosen)
            if needed <= request.output_buffer[2]:
                return self._in_buffer(request, request.output_buffer[:2])
            self._asked[request.id] = request
            return InferReply(request.id, needed_bytes=needed)
        datatypes = {each.name: each.datatype for each in self.said.metadata.outputs}
        specs = tuple(TensorSpec(name, datatypes[name], each.shape) for name, each in chosen)
        return _result(request.id, specs, tuple(each.tobytes() for _, each in chosen))

    def _in_buffer(self, request: Infer, place: tuple[int, int]) -> InferReply:
        """The reply with its outputs in the granted buffer, one behind the other at multiples of 64 bytes."""
        inline = self._reply(replace(request, output_buffer=None))
        segment, at = place
        locations = []
        for data in inline.locations:
            assert isinstance(data, bytes)
            view = self.attached.view(segment, at, len(data), writable=True)
            assert view is not None
            view[:] = data
            locations.append((segment, at, len(data)))
            at += -(-len(data) // 64) * 64
        return replace(inline, locations=tuple(locations))

    def _say_all(self, replies: Sequence[Any]) -> None:  # see `turn`
        frames: list[Any] = []
        for each in replies:
            if isinstance(each, bytes):
                frames.append(each)
            elif self.together and frames and isinstance(frames[-1], list) and len(frames[-1]) < FRAME_RECORDS:
                frames[-1].append(each)
            else:
                frames.append([each])
        for frame in frames:
            try:
                assert self.pair.send(frame if isinstance(frame, bytes) else pack_frame(frame))
            except (OSError, ChannelClosed):  # the gateway has closed the link
                self.is_closed = True
                return


def _result(number: int, specs: tuple[TensorSpec, ...], locations: tuple[bytes, ...]) -> InferReply:
    words = pack_signature(ReplySignature(specs))
    return InferReply(number, "", "", words, locations, 0, 1, 1, 1, 1)


def _with_nan(reply: InferReply) -> InferReply:
    if b"FP32" not in reply.signature or not isinstance(reply.locations[0], bytes):
        return reply
    first = reply.locations[0]
    odd = np.array([np.nan, np.inf], np.float32).tobytes()
    return replace(reply, locations=(odd + first[len(odd) :], *reply.locations[1:]))


def _lie(order: Do, reply: InferReply) -> InferReply | bytes:
    """A reply that a gateway must not believe."""
    first = reply.locations[0]
    assert isinstance(first, bytes)
    raw: list[Any] = [3, reply.id, reply.signature, 1, 1, 1, 1, 1, 1, *reply.locations]
    match order:
        case Do.WRONG_SIZE:
            return replace(reply, locations=(first + b"\0", *reply.locations[1:]))
        case Do.WRONG_NAME:
            specs = TensorSpec("nobody", "UINT8", (1,))
            return replace(reply, signature=pack_signature(ReplySignature((specs,))), locations=(b"\0",))
        case Do.NO_OUTPUT:
            return replace(reply, locations=())
        case Do.IMPOSSIBLE_TIME:
            return replace(reply, infer_ns=1 << 60)
        case Do.NEGATIVE_TIME:
            return replace(reply, queue_ns=-1)
        case Do.IMPOSSIBLE_BATCH:
            return replace(reply, batch=1 << 60)
        case Do.UNGRANTED_MEMORY:
            return replace(reply, locations=((1 << 20, 0, len(first)), *reply.locations[1:]))
        case Do.NEGATIVE_NEED:
            return InferReply(reply.id, needed_bytes=-1)
        case Do.OWN_CODE:
            return InferReply(reply.id, "request_quarantined", "an error of the server's own")
        case Do.TEXT_FOR_BYTES:
            return packed([[*raw[:9], "text", *raw[10:]]])
        case Do.TEXT_FOR_TIME:
            return packed([[*raw[:5], "1", *raw[6:]]])
        case Do.SHORT_RECORD:
            return packed([raw[:5]])
        case _:
            return packed([7, raw])


def packed(frame: object) -> bytes:
    """A frame that the codec would not make."""
    from mmsup.ipc.transport import codec

    return bytes(codec._packer.pack(frame))
