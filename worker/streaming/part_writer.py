"""Writes the parts of streams: small outputs into the message, large ones into the buffer that the gateway granted.

A part that needs a larger buffer is copied and held until there is one; meanwhile its stream makes no other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmsup.ipc.messages.data import GrantBuffer, InferReply, TensorLocation
from mmsup.ipc.transport.codec import PART
from mmsup.worker.execution.batch_arrays import Arrays
from mmsup.worker.execution.declared_outputs import DeclaredOutputs
from mmsup.worker.execution.engine import Response
from mmsup.worker.execution.executor import Executor, only_wanted
from mmsup.worker.execution.model_errors import ModelFailure, call_model_code
from mmsup.worker.execution.outputs import OutputBytes, buffer_bytes, encode_outputs, place_outputs
from mmsup.worker.serving.outbox import Outbox
from mmsup.worker.serving.reply_writer import ReplyWriter
from mmsup.worker.streaming.open_stream import OpenStream


class PartWriter:
    def __init__(self, executor: Executor, replies: ReplyWriter, outbox: Outbox) -> None:
        self._spec = executor.spec
        self._declared = DeclaredOutputs(executor.spec, executor.metadata)
        self._replies = replies
        self._outbox = outbox

    def names(self, stream: OpenStream) -> Sequence[str]:
        """The outputs that its client wants."""
        return stream.request.signature.outputs or self._declared.names

    def write(self, stream: OpenStream, response: Response, infer_ns: int) -> ModelFailure | None:
        """Send one response of a stream, or hold it; the failure if it is not as the model declares."""
        made = only_wanted(response, self.names(stream))
        failure = self._declared.part_failure(made)
        if failure is not None:
            return failure
        stream.times.infer_ns += infer_ns
        inline = self._replies.signatures.inline_reply(made)
        if inline is not None:
            self._send(stream, *inline, infer_ns)
            return None
        outputs = call_model_code(encode_outputs, self._spec, made)  # elements of BYTES may raise
        return outputs if isinstance(outputs, ModelFailure) else self._place(stream, outputs, infer_ns)

    def write_only(self, stream: OpenStream, response: Response, inputs: Arrays, infer_ns: int) -> ModelFailure | None:
        """Send the response of a model that gives one, which ends its request; the failure if it is not as the model
        declares."""
        made = only_wanted(response, self.names(stream))
        failure = self._declared.failure(made, self.names(stream), inputs)
        if failure is None:
            stream.times.infer_ns, stream.times.done_ns = infer_ns, time.monotonic_ns()
            self._replies.reply(stream.request, made, stream.times)
        return failure

    def grant(self, stream: OpenStream, grant: GrantBuffer) -> ModelFailure | None:
        """Send the part that was held, into this buffer."""
        stream.buffer = grant.segment, grant.offset, grant.size
        held, stream.held = stream.held, None
        return None if held is None else self._place(stream, held, 0)

    def end(self, stream: OpenStream) -> None:
        """Send the last reply of a stream."""
        request, times, failure = stream.request, stream.times, stream.failure
        times.done_ns = time.monotonic_ns()
        if failure is not None:
            self._replies.reply_failure(request, failure, times)
            return
        rest = times.queue_ns, times.input_ns, times.infer_ns, 0, 1, times.rows
        self._outbox.add(
            request.link, InferReply(request.message.id, "", "", self._replies.signatures.signature(()), (), 0, *rest)
        )

    def _place(self, stream: OpenStream, outputs: tuple[OutputBytes, ...], infer_ns: int) -> ModelFailure | None:
        needed, buffer, signatures = buffer_bytes(outputs), stream.buffer, self._replies.signatures
        if not needed:
            self._send(stream, signatures.signature(outputs), place_outputs(outputs, None, -1, 0), infer_ns)
            return None
        if buffer is None or buffer[2] < needed:
            held = call_model_code(_copied, self._spec, outputs)  # the copy may not fit under the memory cap
            if isinstance(held, ModelFailure):
                return held
            stream.held = held
            record = [PART, stream.request.message.id, stream.window.sent, b"", needed, infer_ns, 0]
            self._outbox.unsent(stream.request.link).append(record)
            return None
        segment, offset, _ = buffer
        view = stream.request.link.view(segment, offset, needed, writable=True)
        if view is None:
            return ModelFailure("no_buffer", f"the buffer for the outputs of model '{self._spec.name}' is not mapped")
        locations = place_outputs(outputs, view, segment, offset)
        self._send(stream, signatures.signature(outputs), locations, infer_ns)
        return None

    def _send(self, stream: OpenStream, signature: bytes, locations: Sequence[TensorLocation], infer_ns: int) -> None:
        number, window = stream.request.message.id, stream.window
        record = [PART, number, window.sent, signature, 0, infer_ns, 0, *locations]
        self._outbox.unsent(stream.request.link).append(record)
        in_buffer = any(isinstance(each, tuple) for each in locations)
        window.send(sum(len(each) for each in locations if not isinstance(each, tuple)), in_buffer=in_buffer)


def _copied(outputs: tuple[OutputBytes, ...]) -> tuple[OutputBytes, ...]:
    return tuple((name, shape, bytes(data)) for name, shape, data in outputs)
