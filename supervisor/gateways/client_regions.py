"""The memory regions that clients share with the server: of all gateways alike, and held for those that come later.

A gateway opens a region's file and checks it; here it is decided whether the name is free and the limits allow it, and
all gateways are sent the descriptor. A new controller learns the regions from the gateways, so that they outlive a
controller, a gateway, and an upgrade, but not the end of all of these at one time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from mmsup.ipc.errors import CallerError, MmsupError, ServerError
from mmsup.ipc.messages.gateway_control import (
    AddRegion,
    CommandReply,
    MemoryRegion,
    RegisterRegion,
    RemoveRegion,
    UnregisterRegions,
)
from mmsup.ipc.transport.control_channel import close_fds
from mmsup.supervisor.gateways.gateway_process import GatewayProcess
from mmsup.supervisor.gateways.pool import GatewayPool
from mmsup.supervisor.gpu.inventory import Gpus

REGIONS_LIMIT: Final = 512
"""Each takes a descriptor in every gateway and in the controller."""
CUDA: Final = "cuda"
"""Kind of regions that are memory of a GPU: they have a handle and no descriptor, and are no bytes of this machine."""
BYTES_LIMIT: Final = 64 << 30
"""Where the file system of shared memory has no size of its own."""
APPLY_LIMIT_S: Final = 5.0
"""For a gateway that hangs: its clients then get an unknown region until it reads on."""
_FOLDER: Final = "/dev/shm"  # noqa: S108 - only its size is read
Barrier = Callable[[float, Callable[[], None]], None]
"""Calls the function once all gateways have applied what they were sent, after the limit in seconds at the latest."""


@dataclass(frozen=True, slots=True)
class RegionLimits:
    """`bytes`: of all regions together: what the file system of shared memory holds."""

    count: int
    bytes: int


def machine_limits() -> RegionLimits:
    try:
        found = os.statvfs(_FOLDER)
    except OSError:
        return RegionLimits(REGIONS_LIMIT, BYTES_LIMIT)
    return RegionLimits(REGIONS_LIMIT, found.f_blocks * found.f_frsize or BYTES_LIMIT)


def refusal(region: MemoryRegion, others: dict[str, MemoryRegion], limits: RegionLimits) -> MmsupError | None:
    """Why a region cannot be registered beside `others`. Pure."""
    if region.name in others:
        return CallerError("bad_request", f"shared memory region '{region.name:.200}' already in manager")
    if len(others) >= limits.count:
        text = f"{limits.count} shared memory regions are registered, which is the limit: unregister some"
        return CallerError("bad_request", text)
    if region.kind == CUDA:
        return None
    total = region.byte_size + sum(each.byte_size for each in others.values() if each.kind != CUDA)
    if total > limits.bytes:
        text = f"shared memory region '{region.name:.200}' of {region.byte_size} bytes is too large: all regions"
        return CallerError("bad_request", f"{text} together may have {limits.bytes} bytes, {total} would be registered")
    return None


def device_refusal(region: MemoryRegion, gpus: Gpus | None) -> MmsupError | None:
    """Why a region cannot be memory of a GPU of this server; None if it can. `gpus` None: not known yet. Pure."""
    what = f"shared memory region '{region.name:.200}'"
    if gpus is None or not gpus.devices:
        text = f"{what} cannot be registered: the server has no GPU, or does not see it yet"
        return CallerError("not_implemented", f"{text}; use system shared memory, or send tensors as binary data")
    if region.device >= len(gpus.devices):
        here = ", ".join(f"{number} ({each.name})" for number, each in enumerate(gpus.devices))
        return CallerError("bad_request", f"{what} is of device {region.device}, which is not here; there is {here}")
    total = gpus.devices[region.device].total_bytes
    if total and region.byte_size > total:
        text = f"{what} has {region.byte_size} bytes, device {region.device} has {total}"
        return CallerError("bad_request", text)
    return None


def named_device(region: MemoryRegion, gpus: Gpus | None) -> MemoryRegion:
    """The region with the UUID of its device, which stays when devices are counted anew. Pure."""
    if region.kind != CUDA or gpus is None:
        return region
    return replace(region, key=gpus.devices[region.device].uuid)


class ClientRegions:
    def __init__(self, pool: GatewayPool, barrier: Barrier, limits: RegionLimits) -> None:
        self._pool = pool
        self._barrier = barrier
        self._limits = limits
        self.gpus: Callable[[], Gpus | None] = lambda: None
        """The server's devices, as it numbers them; None while they are not known."""
        self._regions: dict[str, MemoryRegion] = {}
        self._descriptors: dict[str, tuple[int, ...]] = {}

    def on_register(self, gateway: GatewayProcess, message: RegisterRegion, descriptors: list[int]) -> None:
        """Owns the descriptors."""
        region = message.region
        error = refusal(region, self._regions, self._limits)
        if region.kind == "system" and len(descriptors) != 1:
            error = ServerError("too_many_files", "the server has too many files open to take another region")
        if region.kind == CUDA and message.id and error is None:  # else a gateway tells what was checked before
            gpus = self.gpus()
            error = device_refusal(region, gpus)
            region = named_device(region, gpus) if error is None else region
        if error is None:
            self._regions[region.name], self._descriptors[region.name] = region, tuple(descriptors)
            for each in self._pool.processes():
                each.send(AddRegion(region), tuple(descriptors))
        elif not message.id and region.name in self._regions:
            self._align(gateway, region, descriptors)
        else:
            close_fds(descriptors)
            if not message.id:  # it has what may not be: a registration was lost with the controller before
                gateway.send(RemoveRegion(region.name))
        self._reply(gateway, message.id, error)

    def _align(self, gateway: GatewayProcess, region: MemoryRegion, descriptors: list[int]) -> None:
        """A gateway tells that it has a region, as another one did before: where the two differ, the first counts."""
        known, fds = self._regions[region.name], self._descriptors[region.name]
        if known != region or [_identity(fd) for fd in fds] != [_identity(fd) for fd in descriptors]:
            gateway.send(AddRegion(known), fds)
        close_fds(descriptors)

    def on_unregister(self, gateway: GatewayProcess, message: UnregisterRegions) -> None:
        for region in list(self._regions.values()):
            if region.kind == message.kind and message.name in ("", region.name):
                del self._regions[region.name]
                close_fds(self._descriptors.pop(region.name))
                self._pool.broadcast(RemoveRegion(region.name))
        self._reply(gateway, message.id, None)

    def _reply(self, gateway: GatewayProcess, number: int, error: MmsupError | None) -> None:
        if not number:
            return
        generation = gateway.generation
        code, text = (error.code, error.text) if error is not None else ("", "")

        def send() -> None:
            if gateway.generation == generation:
                gateway.send(CommandReply(number, code, text, 0.0, None))

        if error is not None:
            send()
        else:
            self._barrier(APPLY_LIMIT_S, send)

    def send_all(self, gateway: GatewayProcess) -> None:
        for name, region in self._regions.items():
            gateway.send(AddRegion(region), self._descriptors[name])

    def count_and_bytes(self) -> tuple[int, int]:
        return len(self._regions), sum(each.byte_size for each in self._regions.values())

    def close(self) -> None:
        for fds in self._descriptors.values():
            close_fds(fds)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
