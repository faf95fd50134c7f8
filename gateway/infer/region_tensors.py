"""Tensors of a request that lie in memory which its client shares: copied in before it is sent, out when it is done.

Inputs are copied to where the model reads them and only then checked, since the client may change its memory at any
time. Outputs are copied when they are complete; a request that fails has written nothing.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Final

from mmsup.gateway.client_memory.region_rules import RegionSpan
from mmsup.gateway.client_memory.region_table import CUDA, HeldRegion, RegionTable
from mmsup.gateway.dispatch.dispatched_request import DispatchedRequest
from mmsup.gateway.http import request_body
from mmsup.gateway.protocol import infer_response
from mmsup.gateway.protocol.binary_tensors import check_strings
from mmsup.gateway.protocol.infer_request import InferRequest, RequestedOutput
from mmsup.gateway.protocol.inference_job import InferenceResult, InputTensor
from mmsup.ipc.errors import CallerError
from mmsup.ipc.memory.allocator import padded_size
from mmsup.ipc.memory.arena import Slot, SlotState
from mmsup.ipc.messages.data import DeviceRegion
from mmsup.ipc.messages.gateway_control import MemoryRegion
from mmsup.ipc.tensors.datatypes import element_count

_EMPTY: Final = memoryview(b"")


class RegionTensors:
    """Of one request, from the check of its regions until `close`."""

    def __init__(self, regions: RegionTable, request: InferRequest, model: str, *, is_local: bool) -> None:
        """CallerError if the client may not share memory, or a region does not exist or is too small."""
        regions.check_access(is_local=is_local)
        self._model = model
        self._stack = ExitStack()
        self._inputs = request.inputs
        self._outputs = request.outputs
        self._held: dict[RegionSpan, HeldRegion] = {}
        with self._stack as stack:  # released if a later one fails
            for each in request.inputs:
                if each.region is not None:
                    self._acquire(regions, each.region, self._input(each))
            for output in request.outputs:
                if output.region is not None:
                    self._acquire(regions, output.region, self._output(output))
            self._stack = stack.pop_all()

    def _acquire(self, regions: RegionTable, span: RegionSpan, what: str) -> None:
        if span not in self._held:
            self._held[span] = held = regions.acquire(span, what)
            self._stack.callback(held.release)

    def close(self) -> None:
        self._stack.close()

    def _input(self, tensor: InputTensor) -> str:
        return f"input '{tensor.name}' for model '{self._model}'"

    def _output(self, output: RequestedOutput) -> str:
        return f"output '{output.spec.name}' of model '{self._model}'"

    def _is_on_device(self, span: RegionSpan) -> bool:
        return self._held[span].region.kind == CUDA

    def device_regions(self, *, is_ensemble: bool) -> tuple[DeviceRegion, ...]:
        """The tensors in memory of a GPU, which the worker copies. CallerError if it cannot do that for this model."""
        found: list[DeviceRegion] = []
        for place, each in enumerate(self._inputs):
            if each.region is not None and self._is_on_device(each.region):
                if each.datatype == "BYTES":
                    text = f"{self._input(each)} is BYTES, which may not lie in memory of a GPU: send it"
                    raise CallerError("bad_request", text, model=self._model)
                region = self._held[each.region].region
                found.append(device_region(place, each.name, each.region, region))
                each.data = b"%b %d" % (region.handle, each.region.offset)
        for output in self._outputs:
            if output.region is not None and self._is_on_device(output.region):
                held = self._held[output.region].region
                found.append(device_region(-1, output.spec.name, output.region, held))
        if found and is_ensemble:
            text = f"model '{self._model}' is an ensemble, for which no memory of a GPU is used"
            raise CallerError("not_implemented", f"{text}: send and take the tensors", model=self._model)
        return tuple(found)

    async def copy_in(self, dispatched: DispatchedRequest, executor: Executor) -> None:
        """Move all inputs of the request into one buffer. `executor` checks strings, if they are many."""
        shared = [each for each in self._inputs if each.region is not None and not self._is_on_device(each.region)]
        if not shared:
            return
        old = dispatched.buffer
        link = dispatched.link if isinstance(old, Slot) else None  # an ensemble has none
        view = old.view if isinstance(old, Slot) else old
        dispatched.buffer = _EMPTY
        try:
            placed = [each for each in self._inputs if each.data is None]
            buffer = await dispatched.allocate(sum(padded_size(each.size) for each in placed))
            at = 0
            for each in placed:
                if each.region is None:
                    await request_body.copy_in_steps(view[each.offset : each.offset + each.size], buffer[at:])
                each.offset = at
                at += padded_size(each.size)
        finally:
            if isinstance(old, Slot) and link is not None and old.state is SlotState.FILLING and not link.closed:
                link.memory.requests.free(old)
        for each in shared:
            await self._read(each, buffer, executor)

    async def _read(self, tensor: InputTensor, buffer: memoryview, executor: Executor) -> None:
        assert tensor.region is not None, "an input without a region is not read from one"
        view, what = buffer[tensor.offset : tensor.offset + tensor.size], self._input(tensor)
        await self._held[tensor.region].read(tensor.region, view, what)
        if tensor.datatype != "BYTES":
            return
        try:
            arguments = view, element_count(tensor.shape)
            if len(view) > request_body.THREAD_PARSE_BYTES:
                await asyncio.get_running_loop().run_in_executor(executor, check_strings, *arguments)
            else:
                check_strings(*arguments)
        except ValueError as error:
            raise CallerError("bad_request", f"{what}: {error}", model=self._model) from None

    async def copy_out(self, result: InferenceResult) -> None:
        """Write the outputs that the client wants in its memory; all are checked before the first is written."""
        made = {each.name: each for each in result.outputs}
        infer_response.check_outputs(self._model, self._outputs, made)
        spans: list[tuple[RequestedOutput, RegionSpan, memoryview]] = []
        for each in self._outputs:
            if each.region is not None:
                data = made[each.spec.name].data
                data = data.cast("B") if data.format != "B" or data.ndim != 1 else data
                if len(data) > each.region.size:
                    text = f"{self._output(each)} has {len(data)} bytes, but shared_memory_byte_size {each.region.size}"
                    raise CallerError("bad_request", text, model=self._model)
                spans.append((each, each.region, data))
        for output, span, data in spans:
            if self._is_on_device(span):
                continue  # the worker has written it
            await self._held[span].write(span, data, self._output(output))


def device_region(place: int, tensor: str, span: RegionSpan, region: MemoryRegion) -> DeviceRegion:
    """What the worker is told of a tensor. Pure."""
    device, handle = region.key, region.handle
    return DeviceRegion(place, tensor, region.name, region.device, device, handle, span.offset, span.size)
