"""Registration, use and end of regions in one gateway, with real files, and a controller that says yes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from fake_router import region_table
from harness.client_region import ClientRegion, client_region
from mmsup.gateway.client_memory import region_file
from mmsup.gateway.client_memory.region_rules import Peer, RegionSpan
from mmsup.gateway.client_memory.region_table import RegionTable
from mmsup.ipc.errors import CallerError, ServerError
from mmsup.ipc.messages.gateway_control import MemoryRegion

LOCAL = Peer(is_local=True)
REMOTE = Peer(is_local=False)
WHAT = "input 'x'"


def run(test: Callable[[RegionTable, ClientRegion], Awaitable[None]], mode: str = "local") -> None:
    async def inner() -> None:
        regions = region_table(mode)
        with client_region(64) as memory:
            await test(regions, memory)
        regions.close()

    asyncio.run(inner())


def test_a_region_is_read_and_written_where_its_tensors_are() -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        memory.put(np.arange(16, dtype=np.float32))
        await regions.register_system("r", memory.key, 16, 48, LOCAL)
        assert regions.status("system", "", LOCAL) == [MemoryRegion("r", "system", memory.key, 16, 48)]
        held, view = regions.acquire(RegionSpan("r", 8, 8), WHAT), bytearray(8)
        await held.read(RegionSpan("r", 8, 8), memoryview(view), WHAT)
        assert np.frombuffer(view, np.float32).tolist() == [6, 7]
        await held.write(RegionSpan("r", 40, 8), memoryview(view), WHAT)
        assert memory.get(2, 56) == [6, 7]
        held.release()

    run(test)


def test_a_request_keeps_the_region_that_is_unregistered_meanwhile() -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        memory.put(np.arange(16, dtype=np.float32))
        await regions.register_system("r", memory.key, 0, 64, LOCAL)
        held, span, view = regions.acquire(RegionSpan("r", 4, 4), WHAT), RegionSpan("r", 4, 4), bytearray(4)
        fd = held.fd
        memory.remove()
        await regions.unregister("system", "", LOCAL)
        with pytest.raises(CallerError, match="Unable to find shared memory region: 'r'"):
            regions.acquire(span, WHAT)
        await held.read(span, memoryview(view), WHAT)
        assert np.frombuffer(view, np.float32).tolist() == [1]
        held.release()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    run(test)


def test_a_file_that_became_shorter_is_neither_read_nor_made_longer() -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        await regions.register_system("r", memory.key, 0, 64, LOCAL)
        held, span = regions.acquire(RegionSpan("r", 32, 32), WHAT), RegionSpan("r", 32, 32)
        for left, found in ((40, 8), (16, 0), (0, 0)):
            memory.truncate(left)
            with pytest.raises(CallerError, match=f"only {found} are there"):
                await held.read(span, memoryview(bytearray(32)), WHAT)
            with pytest.raises(CallerError, match=f"only {found} are there"):
                await held.write(span, memoryview(bytes(32)), WHAT)
            assert memory.size == left
        held.release()

    run(test)


def test_a_large_tensor_is_copied_in_steps_between_which_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_file, "STEP_BYTES", 8)

    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        await regions.register_system("r", memory.key, 0, 64, LOCAL)
        held, span, turns = regions.acquire(RegionSpan("r", 0, 64), WHAT), RegionSpan("r", 0, 64), 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(count())
        data = bytes(range(64))
        await held.write(span, memoryview(data), WHAT)
        view = bytearray(64)
        await held.read(span, memoryview(view), WHAT)
        other.cancel()
        assert bytes(view) == data
        assert turns >= 2 * (64 // 8 - 1)
        held.release()

    run(test)


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "socket", "nothing"])
@pytest.mark.fault("F79")
def test_what_is_no_memory_of_a_client_cannot_be_registered(kind: str) -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        path = f"{memory.path}_other"
        try:
            if kind == "link":
                os.symlink(memory.path, path)
            elif kind == "hard link":
                os.link(memory.path, path)
            elif kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                os.mkdir(path)
            elif kind == "socket":
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.bind(path)
            with pytest.raises(CallerError) as caught:
                await regions.register_system("r", f"{memory.key}_other", 0, 4, LOCAL)
            assert caught.value.code == "bad_request"
            assert "/dev/shm" not in caught.value.text
            assert memory.key not in caught.value.text
        finally:
            with contextlib.suppress(FileNotFoundError):
                (os.rmdir if kind == "folder" else os.unlink)(path)
        assert regions.held() == []

    run(test)


def test_a_name_is_taken_once_and_a_key_may_have_many() -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        await regions.register_system("r", memory.key, 0, 64, LOCAL)
        await regions.register_system("s", f"/{memory.key}", 0, 64, LOCAL)
        with pytest.raises(CallerError, match="shared memory region 'r' already in manager"):
            await regions.register_system("r", memory.key, 0, 64, LOCAL)
        await regions.unregister("system", "r", LOCAL)
        await regions.unregister("system", "r", LOCAL)
        await regions.unregister("cuda", "", LOCAL)
        assert [each.name for each in regions.status("system", "", LOCAL)] == ["s"]
        with pytest.raises(CallerError) as caught:
            regions.status("system", "r", LOCAL)
        assert caught.value.code == "unknown_region"

    run(test)


@pytest.mark.parametrize(
    ("mode", "peer", "is_open"),
    [
        ("local", LOCAL, True),
        ("local", REMOTE, False),
        ("all", REMOTE, True),
        ("all", LOCAL, True),
        ("none", LOCAL, False),
        ("none", REMOTE, False),
    ],
)
def test_memory_is_shared_where_the_operator_allows_it(mode: str, peer: Peer, is_open: bool) -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        await regions.unregister("system", "", peer)  # as clients begin, wherever they are
        assert regions.status("system", "", peer) == []
        if is_open:
            await regions.register_system("r", memory.key, 0, 64, peer)
            return
        with pytest.raises(CallerError) as caught:
            await regions.register_system("r", memory.key, 0, 64, peer)
        assert caught.value.code == "not_implemented"
        assert "--allow-client-shm" in caught.value.text

    run(test, mode)


@pytest.mark.parametrize(
    ("handle", "device", "size", "says"),
    [
        (bytes(63), 0, 64, "needs a raw_handle of 64 bytes, and got one of 63"),
        (bytes(64), -1, 64, "got device_id -1, 64 bytes"),
        (bytes(64), 1 << 62, 64, "got device_id"),
        (bytes(64), 0, 0, "byte_size above 0"),
        (bytes(64), 0, 1 << 64, "at most 281474976710656 bytes"),
    ],
)
def test_what_is_no_memory_of_a_gpu_is_not_sent_on(handle: bytes, device: int, size: int, says: str) -> None:
    async def test(regions: RegionTable, _: ClientRegion) -> None:
        with pytest.raises(CallerError, match=says) as caught:
            await regions.register_cuda("g", handle, device, size, LOCAL)
        assert caught.value.code == "bad_request"
        with pytest.raises(CallerError, match="this listener shares no memory"):
            await regions.register_cuda("g", bytes(64), 0, 64, REMOTE)
        assert regions.status("cuda", "", LOCAL) == []

    run(test)


def test_a_handle_is_forgotten_with_its_last_region() -> None:
    async def test(regions: RegionTable, memory: ClientRegion) -> None:
        forgotten: list[bytes] = []
        regions.on_unused_handle = forgotten.append
        one, other = bytes(64), bytes(range(64))
        for name, handle in (("a", one), ("b", one), ("c", other)):
            await regions.register_cuda(name, handle, 0, 64, LOCAL)
        with pytest.raises(CallerError, match="already in manager"):
            await regions.register_system("a", memory.key, 0, 64, LOCAL)
        await regions.unregister("cuda", "a", LOCAL)
        assert forgotten == []
        await regions.unregister("cuda", "", LOCAL)
        assert sorted(forgotten) == [one, other]
        with pytest.raises(CallerError, match="Unable to find cuda shared memory region: 'a'"):
            regions.status("cuda", "a", LOCAL)

    run(test)


def test_nothing_is_registered_while_no_controller_answers() -> None:
    async def test() -> None:
        regions = RegionTable("local", ())
        with client_region(64) as memory:
            with pytest.raises(ServerError) as caught:
                await regions.register_system("r", memory.key, 0, 64, LOCAL)
            assert caught.value.code == "unavailable"
            regions.add(MemoryRegion("r", "system", memory.key, 0, 64), [])  # its descriptor was lost
            assert regions.held() == []

    asyncio.run(test())
