"""Tensors in memory of a GPU that clients share: copied in when a request comes, out when its outputs are complete.

A handle is opened once, when a request names it, and closed when its region is unregistered, when HANDLES_LIMIT others
were used since, or when the process ends. Each is opened again where it is needed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import numpy as np

from mmsup.ipc.messages.data import DeviceRegion, InferWithRegions
from mmsup.ipc.specs import ModelSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.client_memory import device_rules
from mmsup.worker.client_memory.cuda_memory import CudaMemory, DriverError
from mmsup.worker.engines.device.cuda_driver import open_driver
from mmsup.worker.execution.model_errors import ModelFailure, failure_of
from mmsup.worker.execution.outputs import OutputBytes

HANDLES_LIMIT: Final = 64
"""Each maps memory of its client into the address space of the device."""
log = logging.getLogger("mmsup.worker")


class OpenHandles:
    """Of one process, for the models of a co-location group together: the driver opens a handle once in a process."""

    def __init__(self, open_memory: Callable[[], CudaMemory | None], *, is_on_gpu: bool) -> None:
        """`open_memory` is called when the first handle is needed: what it takes of the device, only they pay for."""
        self.is_on_gpu = is_on_gpu
        self._open_memory = open_memory
        self._memory: CudaMemory | None = None
        self._addresses: dict[bytes, int] = {}
        """By handle; the one that was used last comes last."""

    def memory(self) -> CudaMemory | None:
        """None if the driver does not work."""
        if self._memory is None and self.is_on_gpu:
            self._memory = self._open_memory()
        return self._memory

    def address(self, memory: CudaMemory, handle: bytes, *, keep: bool) -> int:
        """Open a handle, unless it is open; DriverError. `keep` only what a region that exists has: after the last use
        of one that was unregistered nobody would close it."""
        address = self._addresses.pop(handle, None)
        if address is None:
            address = memory.open(handle)
        else:
            keep = True
        if keep:
            self._addresses[handle] = address
            while len(self._addresses) > HANDLES_LIMIT:
                self.forget(next(iter(self._addresses)))
        return address

    def has(self, handle: bytes) -> bool:
        return handle in self._addresses

    def forget(self, handle: bytes) -> None:
        address = self._addresses.pop(handle, None)
        if address is not None and self._memory is not None:
            close(self._memory, address)


def close(memory: CudaMemory, address: int) -> None:
    try:
        memory.close(address)
    except DriverError as error:  # its context is lost, and with it all that was open there
        log.warning("memory of a client was not closed: %s", error)


def _driver_memory() -> CudaMemory | None:
    driver = open_driver()
    try:
        return CudaMemory(driver) if driver is not None else None
    except AttributeError:  # a driver older than these functions
        return None


@cache
def process_handles() -> OpenHandles:
    """Those of this process. The controller has chosen the one GPU that it sees, or none."""
    return OpenHandles(_driver_memory, is_on_gpu=bool(os.environ.get("CUDA_VISIBLE_DEVICES")))


class DeviceRegions:
    """For the requests of one model."""

    def __init__(self, spec: ModelSpec, handles: OpenHandles) -> None:
        self._spec = spec
        self._handles = handles

    def forget(self, handle: bytes) -> None:
        self._handles.forget(handle)

    def copy_in(self, message: InferWithRegions) -> ModelFailure | None:
        """Put the inputs that lie in regions into the message. All regions are opened, so that one for an output that
        cannot be used is known before the run."""
        locations = list(message.locations)
        for region in message.regions:
            if region.place >= len(locations):
                return ModelFailure("internal", "a region is for an input that the request does not have")
            try:
                into = np.empty(region.size if region.place >= 0 else 0, np.uint8)
            except MemoryError as error:
                return failure_of(error, self._spec)
            failure = self._copy(region, into, keep=True)
            if failure is not None:
                return failure
            if region.place >= 0:
                locations[region.place] = into.data.toreadonly()
        message.locations = tuple(locations)
        return None

    def copy_out(self, message: InferWithRegions, outputs: Sequence[OutputBytes]) -> ModelFailure | None:
        """Write the outputs that the client wants in regions; the sizes of all are checked before the first."""
        made = {name: np.frombuffer(data, np.uint8) for name, _, data in outputs}
        wanted = [each for each in device_rules.outputs_of(message.regions) if each.tensor in made]
        for region in wanted:
            failure = device_rules.output_failure(region, made[region.tensor].nbytes, self._spec.name)
            if failure is not None:
                return failure
        for region in wanted:
            failure = self._copy(region, made[region.tensor], keep=False)
            if failure is not None:
                return failure
        return None

    def _copy(self, region: DeviceRegion, data: Array, *, keep: bool) -> ModelFailure | None:
        """Copy into `data` what an input needs, or from `data` what an output has."""
        model, handles = self._spec.name, self._handles
        memory = handles.memory()
        if memory is None and handles.is_on_gpu:
            return device_rules.no_driver_failure(region, model)
        failure = device_rules.device_failure(region, None if memory is None else memory.device, model)
        if failure is not None or memory is None:
            return failure
        try:
            address = handles.address(memory, region.handle, keep=keep)
            try:
                failure = device_rules.range_failure(region, memory.size(address), model)
                if failure is None and data.nbytes:
                    copy = memory.read if region.place >= 0 else memory.write
                    copy(address + region.offset, data)
            finally:
                if not handles.has(region.handle):
                    close(memory, address)
        except DriverError as error:
            return device_rules.driver_failure(region, error.code, model)
        return failure
