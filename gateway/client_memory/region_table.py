"""The memory regions of a gateway, as the controller has them for all gateways.

A region is held by a descriptor of its file, so that the file's name may be removed. A request in flight holds the
region too: unregistering waits for none, and the descriptor is closed when nobody needs it any more.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from mmsup.gateway.client_memory import region_file, region_rules
from mmsup.gateway.client_memory.region_rules import Peer, RegionSpan
from mmsup.ipc.errors import CallerError, ServerError
from mmsup.ipc.messages.gateway_control import ConfigureGateway, MemoryRegion

SYSTEM: Final = "system"
CUDA: Final = "cuda"


class HeldRegion:
    """A region with its descriptor. `acquire` and `release` come in pairs; the table holds it once."""

    def __init__(self, region: MemoryRegion, fd: int) -> None:
        self.region = region
        self.fd = fd
        """-1 for memory of a GPU."""
        self._holders = 1

    def acquire(self) -> HeldRegion:
        self._holders += 1
        return self

    def release(self) -> None:
        self._holders -= 1
        if not self._holders and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    async def read(self, span: RegionSpan, view: memoryview, what: str) -> None:
        """Copy a tensor out of the region; CallerError if the client has shortened its file."""
        found = await region_file.read(self.fd, self.region.offset + span.offset, view)
        if found < span.size:
            raise region_rules.short_error(what, span.region, found, span.size)

    async def write(self, span: RegionSpan, data: memoryview, what: str) -> None:
        """Copy a tensor into the region; CallerError if the client has shortened its file."""
        done = await region_file.write(self.fd, self.region.offset + span.offset, data)
        if done < len(data):
            raise region_rules.short_error(what, span.region, done, len(data))


async def _no_controller(_: MemoryRegion, __: int) -> None:
    raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=1)


async def _no_controller_for(_: str, __: str) -> None:
    raise ServerError("unavailable", "the supervisor does not answer; try again", retry_after_s=1)


class RegionTable:
    """One per gateway process. `mode`, `uids`: `client_memory` and `client_memory_uids` of ConfigureGateway."""

    def __init__(self, mode: str, uids: Iterable[int]) -> None:
        self._mode = mode
        self._trusted = frozenset({os.geteuid(), *uids})
        self._held: dict[str, HeldRegion] = {}
        self.announce: Callable[[MemoryRegion, int], Awaitable[Any]] = _no_controller  # the result is empty
        """Has the controller send a region to all gateways; set by controller_channel.py."""
        self.withdraw: Callable[[str, str], Awaitable[Any]] = _no_controller_for  # as above
        """Has it take regions from all gateways, by kind and name (empty: all)."""

        self.on_unused_handle: Callable[[bytes], None] = lambda _: None
        """Called when the last region of a handle is gone: workers may have it open."""

    # What the controller says.

    def add(self, region: MemoryRegion, descriptors: list[int]) -> None:
        """Owns the descriptor. A region that comes without its descriptor is dropped."""
        fd = descriptors.pop() if descriptors else -1
        if fd < 0 and region.kind == SYSTEM:
            return
        self.remove(region.name)
        self._held[region.name] = HeldRegion(region, fd)

    def remove(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is None:
            return
        held.release()
        handle = held.region.handle
        if handle and all(each.region.handle != handle for each in self._held.values()):
            self.on_unused_handle(handle)

    def held(self) -> list[HeldRegion]:
        return list(self._held.values())

    def close(self) -> None:
        for name in list(self._held):
            self.remove(name)

    # What clients ask.

    def check_access(self, *, is_local: bool) -> None:
        """CallerError if clients of this listener may not share memory."""
        if self._mode == "none" or (self._mode == "local" and not is_local):
            hint = "send tensors as binary data, or start the server with --allow-client-shm=true"
            text = "shared memory of clients is off" if self._mode == "none" else "this listener shares no memory"
            raise CallerError("not_implemented", f"{text}: {hint}")

    async def register_system(self, name: str, key: str, offset: int, byte_size: int, peer: Peer) -> None:
        """Returns when all gateways have the region."""
        self.check_access(is_local=peer.is_local)
        self._check_new(name)
        fd = region_file.open_region(name, key, offset, byte_size, peer, self._trusted)
        try:
            await self.announce(MemoryRegion(name, SYSTEM, key, offset, byte_size), fd)
        finally:
            os.close(fd)

    async def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int, peer: Peer) -> None:
        """Returns when all gateways have the region. The handle is opened by the first worker that needs it."""
        self.check_access(is_local=peer.is_local)
        region_rules.check_device_memory(name, handle, device, byte_size)
        self._check_new(name)
        await self.announce(MemoryRegion(name, CUDA, "", 0, byte_size, device, handle), -1)

    def _check_new(self, name: str) -> None:
        if name in self._held:
            raise CallerError("bad_request", f"shared memory region '{name:.200}' already in manager")

    async def unregister(self, kind: str, name: str, peer: Peer) -> None:
        """One region or all (no name); also where there is none, since clients begin with that."""
        found = [each for each in self._of_kind(kind) if name in ("", each.name)]
        if found:
            self.check_access(is_local=peer.is_local)
            await self.withdraw(kind, name)

    def status(self, kind: str, name: str, peer: Peer) -> list[MemoryRegion]:
        """All regions of a kind, or the one of this name; CallerError if there is none."""
        found = [each for each in self._of_kind(kind) if name in ("", each.name)]
        if found or name:
            self.check_access(is_local=peer.is_local)
        if name and not found:
            raise CallerError("unknown_region", f"Unable to find {kind} shared memory region: '{name:.200}'")
        return found

    def _of_kind(self, kind: str) -> list[MemoryRegion]:
        return [each.region for each in self._held.values() if each.region.kind == kind]

    def acquire(self, span: RegionSpan, what: str) -> HeldRegion:
        """The region of a tensor, to be released; CallerError if there is none, or the tensor is not in it."""
        held = self._held.get(span.region)
        if held is None:
            raise CallerError("bad_request", f"{what}: Unable to find shared memory region: '{span.region:.200}'")
        region_rules.check_span(span, held.region.byte_size, what)
        return held.acquire()


def make_region_table(configuration: ConfigureGateway) -> RegionTable:
    return RegionTable(configuration.client_memory, configuration.client_memory_uids)
