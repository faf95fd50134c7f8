"""One call of another model, from its record to its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mmsup.ipc.messages.calls import CallInputs, CallModel, CallReply, EndCall, GrantCall
from mmsup.ipc.messages.data import InferSignature
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array, as_array, datatype_of
from mmsup.ipc.transport.codec import pack_signature, unpack_reply_signature
from mmsup.worker.calls.transport import CallingRun, CallLink
from mmsup.worker.execution.call_error import CallError
from mmsup.worker.execution.outputs import OutputBytes, buffer_bytes, encode_outputs, place_outputs

if TYPE_CHECKING:
    import asyncio

TENSOR_LIMIT: Final = 64
NAME_CHARACTERS: Final = 256


class OpenCall:
    """Made for each call; `number` is unique in this worker."""

    def __init__(self, number: int, run: CallingRun, model: str, inputs: Mapping[str, Any]) -> None:  # arrays, or lists
        self.number = number
        self.link: CallLink = run.link
        self.model = model
        self._run = run
        self._arrays = _checked(model, inputs)
        self._encoded: tuple[OutputBytes, ...] = encode_outputs(self._arrays)
        self.reply: CallReply | None = None
        self.future: asyncio.Future[None] | None = None
        """Of an asynchronous call: done with the reply."""

    @property
    def parents(self) -> tuple[int, ...]:
        return self._run.parents

    def record(
        self, version: str, outputs: Sequence[str], parameters: Mapping[str, Any], deadline_ns: int
    ) -> CallModel:
        """What asks for the call. `parameters`: scalars."""
        specs = [TensorSpec(name, datatype_of(each) or "", each.shape) for name, each in self._arrays.items()]
        signature = pack_signature(InferSignature(tuple(specs), tuple(outputs), dict(parameters), self._run.priority))
        needed_bytes = buffer_bytes(self._encoded)
        locations = () if needed_bytes else place_outputs(self._encoded, None, -1, 0)
        run, named = self._run, (self.model, version, deadline_ns, signature, needed_bytes)
        return CallModel(self.number, run.parents, run.is_shared, run.blocks, *named, locations)

    def on_grant(self, grant: GrantCall) -> CallInputs | EndCall:
        """Write the inputs into the memory that was granted; what answers the grant."""
        view = self.link.view(grant.segment, grant.offset, grant.size, writable=True)
        if view is None or buffer_bytes(self._encoded) > grant.size:
            text = f"the inputs for model '{self.model}' found no memory"
            self.finish(CallReply(self.number, "no_buffer", text, retryable=True))
            return EndCall(self.number)
        return CallInputs(self.number, place_outputs(self._encoded, view, grant.segment, grant.offset))

    def finish(self, reply: CallReply) -> None:
        self.reply = reply
        self._encoded, self._arrays = (), {}
        if self.future is not None and not self.future.done():
            self.future.set_result(None)

    def outputs(self, caller: str) -> dict[str, Array]:
        """The outputs, which belong to the caller; CallError if there are none."""
        reply = self.reply
        assert reply is not None, "a call is read before its reply"
        if reply.code:
            text = f"model '{caller}' called model '{self.model}': {reply.text}"
            raise CallError(reply.code, text, model=self.model, retryable=reply.retryable)
        made: dict[str, Array] = {}
        signature = unpack_reply_signature(reply.signature)
        for each, location in zip(signature.outputs, reply.locations, strict=True):
            data = self.link.view(*location, writable=False) if isinstance(location, tuple) else location
            if data is None:
                text = f"model '{caller}' called model '{self.model}': its output '{each.name}' did not arrive"
                raise CallError("internal", text, model=self.model)
            array = as_array(data, each.datatype, each.shape)
            made[each.name] = array if each.datatype == "BYTES" else np.array(array)
        return made


def _checked(model: str, inputs: Mapping[str, Any]) -> dict[str, Array]:  # arrays, or lists
    """The inputs as arrays of datatypes that models can have."""
    if not isinstance(model, str) or not 0 < len(model) <= NAME_CHARACTERS:
        raise CallError("bad_request", "the name of the model to call is no string of a model's length")
    if not isinstance(inputs, Mapping) or len(inputs) > TENSOR_LIMIT:
        raise CallError("bad_request", f"the inputs of a call are a dict of at most {TENSOR_LIMIT} arrays", model=model)
    arrays: dict[str, Array] = {}
    for name, value in inputs.items():
        array = np.asarray(value)
        if not isinstance(name, str) or datatype_of(array) is None:
            text = f"input '{name}' for model '{model}' is {array.dtype}, which is no datatype of a model"
            raise CallError("bad_request", text, model=model)
        arrays[name] = array
    return arrays
