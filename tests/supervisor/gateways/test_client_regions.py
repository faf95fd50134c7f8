"""Which regions are registered, and which gateways have them, whatever happens in whatever order."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, cast

import pytest

from mmsup.ipc.messages.gateway_control import (
    FROM_GATEWAY,
    TO_GATEWAY,
    AddRegion,
    CommandReply,
    MemoryRegion,
    RegisterRegion,
    RemoveRegion,
    UnregisterRegions,
)
from mmsup.ipc.transport.codec import decode, encode
from mmsup.supervisor.gateways.client_regions import ClientRegions, RegionLimits, device_refusal, refusal
from mmsup.supervisor.gpu.inventory import Gpu, Gpus

LIMITS = RegionLimits(4, 1000)


def region(name: str, size: int = 100, kind: str = "system", offset: int = 0) -> MemoryRegion:
    return MemoryRegion(name, kind, "k", offset, size)


def text_of(refused: object) -> str:
    return getattr(refused, "text", "")


@pytest.mark.fault("F79")
def test_names_number_and_bytes_of_regions_are_bounded() -> None:
    others = {name: region(name, 300) for name in "abc"}
    assert refusal(region("d"), others, LIMITS) is None
    assert text_of(refusal(region("a"), others, LIMITS)) == "shared memory region 'a' already in manager"
    assert "together may have 1000 bytes, 1001 would be registered" in text_of(
        refusal(region("d", 101), others, LIMITS)
    )
    assert "4 shared memory regions are registered, which is the limit" in text_of(
        refusal(region("e", 1), others | {"d": region("d")}, LIMITS)
    )
    assert refusal(region("d", 1 << 70), {}, LIMITS) is not None


class FakeGateway:
    """What a gateway has, by the messages that it was sent."""

    def __init__(self) -> None:
        self.generation = 1
        self.has: dict[str, tuple[MemoryRegion, int]] = {}
        self.replies: list[CommandReply] = []

    def send(self, message: object, descriptors: tuple[int, ...] = ()) -> None:
        if isinstance(message, AddRegion):
            inode = os.fstat(descriptors[0]).st_ino if descriptors else 0
            self.has[message.region.name] = message.region, inode
        elif isinstance(message, RemoveRegion):
            self.has.pop(message.name, None)
        else:
            assert isinstance(message, CommandReply)
            self.replies.append(message)


class FakePool:
    def __init__(self, gateways: list[FakeGateway]) -> None:
        self.gateways = gateways

    def processes(self) -> list[FakeGateway]:
        return self.gateways

    def broadcast(self, message: object) -> None:
        for each in self.gateways:
            each.send(message)


def at_once(_: float, on_done: Callable[[], None]) -> None:
    on_done()


def made(*gateways: FakeGateway, limits: RegionLimits = LIMITS) -> tuple[ClientRegions, list[Any]]:
    return ClientRegions(cast("Any", FakePool(list(gateways))), at_once, limits), list(gateways)


def memory_file() -> int:
    return os.memfd_create("client", os.MFD_CLOEXEC)


def test_all_gateways_have_what_one_of_them_registers() -> None:
    one, other = FakeGateway(), FakeGateway()
    regions, (first, _) = made(one, other)
    fd = memory_file()
    inode = os.fstat(fd).st_ino
    regions.on_register(first, RegisterRegion(7, region("a")), [fd])
    assert one.has == other.has == {"a": (region("a"), inode)}
    assert [(each.id, each.code) for each in one.replies] == [(7, "")]
    regions.on_register(first, RegisterRegion(8, region("a")), [memory_file()])
    assert (one.replies[-1].code, other.replies) == ("bad_request", [])
    later = FakeGateway()
    regions.send_all(cast("Any", later))
    assert later.has == one.has
    regions.on_unregister(first, UnregisterRegions(9, "cuda", ""))
    assert one.has
    regions.on_unregister(first, UnregisterRegions(10, "system", ""))
    assert one.has == other.has == {}
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_new_controller_takes_what_gateways_have_and_makes_them_agree() -> None:
    one, other = FakeGateway(), FakeGateway()
    regions, (first, second) = made(one, other)
    fd = memory_file()
    inode = os.fstat(fd).st_ino
    regions.on_register(first, RegisterRegion(0, region("a")), [fd])
    regions.on_register(second, RegisterRegion(0, region("a")), [os.dup(fd)])
    regions.on_register(second, RegisterRegion(0, region("b")), [memory_file()])
    regions.on_register(second, RegisterRegion(0, region("a", offset=8)), [memory_file()])
    assert one.has.keys() == other.has.keys() == {"a", "b"}
    assert one.has["a"] == other.has["a"] == (region("a"), inode)
    assert one.replies == other.replies == []
    regions.close()


def test_a_region_without_its_descriptor_is_not_registered() -> None:
    one = FakeGateway()
    regions, (first,) = made(one)
    regions.on_register(first, RegisterRegion(1, region("a")), [])
    assert (one.has, one.replies[0].code) == ({}, "too_many_files")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_gateways_agree_and_no_descriptor_is_left(seed: int) -> None:
    rng = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))
    gateways = [FakeGateway() for _ in range(3)]
    regions, known = made(*gateways)
    for number in range(1, 60):
        sender, name = rng.choice(known), rng.choice("abcdef")
        if rng.random() < 0.6:
            message = RegisterRegion(rng.choice([0, number]), region(name, rng.randrange(1, 500)))
            regions.on_register(sender, message, [memory_file()] if rng.random() < 0.9 else [])
        elif rng.random() < 0.5:
            regions.on_unregister(sender, UnregisterRegions(number, "system", rng.choice([name, ""])))
        else:
            fresh = FakeGateway()
            regions.send_all(cast("Any", fresh))
            gateways[0].has = fresh.has | {}
        assert all(each.has == gateways[0].has for each in gateways)
        count, size = regions.count_and_bytes()
        assert count == len(gateways[0].has) <= LIMITS.count
        assert size == sum(each.byte_size for each, _ in gateways[0].has.values()) <= LIMITS.bytes
    regions.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_messages_pass_the_wire() -> None:
    big = MemoryRegion("r", "cuda", "", (1 << 64) - 1, (1 << 64) - 1, 3, bytes(64))
    for message, table in (
        (RegisterRegion(1, big), FROM_GATEWAY),
        (UnregisterRegions(2, "system", "r"), FROM_GATEWAY),
        (AddRegion(big), TO_GATEWAY),
        (RemoveRegion("r"), TO_GATEWAY),
    ):
        assert decode(encode(message), table) == message


GPUS = Gpus((Gpu(0, "GPU-a", "H200", 1000), Gpu(1, "GPU-b", "L4", 0)))


def device_memory(device: int, size: int = 100, name: str = "g") -> MemoryRegion:
    return MemoryRegion(name, "cuda", "", 0, size, device, bytes(64))


@pytest.mark.parametrize(
    ("region", "gpus", "code", "says"),
    [
        (device_memory(0), GPUS, "", ""),
        (device_memory(1, 1 << 40), GPUS, "", ""),  # it has no memory of its own
        (device_memory(0, 1001), GPUS, "bad_request", "has 1001 bytes, device 0 has 1000"),
        (device_memory(2), GPUS, "bad_request", "device 2, which is not here; there is 0 (H200), 1 (L4)"),
        (device_memory(0), Gpus((), "no driver"), "not_implemented", "has no GPU"),
        (device_memory(0), None, "not_implemented", "has no GPU"),
    ],
)
def test_memory_of_a_gpu_is_that_of_a_gpu_which_is_here(
    region: MemoryRegion, gpus: Gpus | None, code: str, says: str
) -> None:
    error = device_refusal(region, gpus)
    assert (error.code if error is not None else "") == code
    assert says in text_of(error)


def test_memory_of_a_gpu_is_registered_with_the_device_that_its_number_means() -> None:
    one, other = FakeGateway(), FakeGateway()
    regions, (first, second) = made(one, other)
    regions.on_register(first, RegisterRegion(1, device_memory(1)), [])
    assert (one.replies[-1].code, one.has) == ("not_implemented", {})
    regions.gpus = lambda: GPUS
    regions.on_register(first, RegisterRegion(2, device_memory(1, 1 << 40)), [])
    expected = MemoryRegion("g", "cuda", "GPU-b", 0, 1 << 40, 1, bytes(64))
    assert (one.replies[-1].code, one.has) == ("", {"g": (expected, 0)})
    assert other.has == one.has
    regions.on_register(first, RegisterRegion(3, region("g")), [memory_file()])
    assert one.replies[-1].text == "shared memory region 'g' already in manager"
    regions.on_register(first, RegisterRegion(4, region("s", 1000)), [memory_file()])
    assert one.replies[-1].code == ""  # bytes of a GPU are none of this machine's
    successor, _ = made(one, other)  # does not know its devices yet
    for each in (first, second):
        successor.on_register(each, RegisterRegion(0, expected), [])
    regions.on_unregister(first, UnregisterRegions(5, "cuda", "g"))
    assert "g" not in one.has
    regions.close()
