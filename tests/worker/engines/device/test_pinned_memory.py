"""Registration of memory with a device."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest

from mmsup.worker.engines.device.pinned_memory import READ_ONLY, PinnedMemory, registration_flags


class Registrar:
    """Records what is registered, and refuses on request."""

    def __init__(self, *, read_only: bool = True, refusal: str = "") -> None:
        self.registers_read_only = read_only
        self.refusal = refusal
        self.held: dict[int, tuple[int, int]] = {}
        self.calls = 0

    def register(self, address: int, size: int, flags: int) -> str:
        self.calls += 1
        assert address not in self.held, "registered twice"
        if not self.refusal:
            self.held[address] = (size, flags)
        return self.refusal

    def unregister(self, address: int) -> str:
        self.calls += 1
        del self.held[address]
        return ""


def extent(size: int = 4096) -> tuple[memoryview, int]:
    view = memoryview(bytearray(size))
    return view, (np.frombuffer(view, np.uint8).ctypes.data if size else 0)


@pytest.mark.parametrize(
    ("size", "writable", "read_only", "flags"),
    [
        (4096, True, True, 0),
        (4096, True, False, 0),
        (4096, False, True, READ_ONLY),
        (4096, False, False, None),
        (0, True, True, None),
        (0, False, True, None),
    ],
)
def test_a_mapping_is_registered_with_the_flags_that_the_device_supports(
    size: int, *, writable: bool, read_only: bool, flags: int | None
) -> None:
    assert registration_flags(size, writable=writable, registers_read_only=read_only) == flags
    registrar = Registrar(read_only=read_only)
    pinned = PinnedMemory(registrar)
    view, address = extent(size)
    pinned.register(view, writable=writable)
    assert registrar.held == ({} if flags is None else {address: (size, flags)})
    assert pinned.is_registered(address, size) is (flags is not None)
    pinned.unregister(view)
    assert not registrar.held


def test_only_bytes_inside_one_mapping_count_as_registered() -> None:
    pinned = PinnedMemory(Registrar())
    view, address = extent(4096)
    pinned.register(view, writable=True)
    assert pinned.is_registered(address, 4096)
    assert pinned.is_registered(address + 4095, 1)
    assert not pinned.is_registered(address, 4097)
    assert not pinned.is_registered(address - 1, 2)
    assert not pinned.is_registered(address + 4096, 1)
    pinned.unregister(view)
    assert not pinned.is_registered(address, 1)


def test_a_mapping_that_was_not_unregistered_is_replaced_at_its_address() -> None:
    registrar = Registrar()
    pinned = PinnedMemory(registrar)
    view, address = extent(4096)
    pinned.register(view, writable=True)
    pinned.register(view[:1024], writable=True)
    assert registrar.held == {address: (1024, 0)}
    assert not pinned.is_registered(address, 4096)


def test_a_refusal_is_logged_once_and_means_not_registered(caplog: pytest.LogCaptureFixture) -> None:
    registrar = Registrar(refusal="error 1")
    pinned = PinnedMemory(registrar)
    views = [extent() for _ in range(3)]
    with caplog.at_level(logging.WARNING, "mmsup.worker"):
        for view, address in views:
            pinned.register(view, writable=True)
            assert not pinned.is_registered(address, 1)
            pinned.unregister(view)
    assert len(caplog.records) == 1
    assert "copies will be slower: error 1" in caplog.text
    assert registrar.calls == 3, "what was not registered is not taken back"


def test_without_a_device_nothing_is_registered() -> None:
    pinned = PinnedMemory(None)
    view, address = extent()
    pinned.register(view, writable=True)
    assert not pinned.is_registered(address, 1)
    pinned.unregister(view)
    pinned.clear()


def test_the_table_stays_right_in_a_random_walk() -> None:
    rng = random.Random(7)
    registrar = Registrar()
    pinned = PinnedMemory(registrar)
    views = [extent(rng.choice((1024, 4096, 8192))) for _ in range(12)]
    there: set[int] = set()
    for _ in range(2000):
        index = rng.randrange(len(views))
        view, address = views[index]
        if index in there:
            pinned.unregister(view)
            there.discard(index)
        else:
            pinned.register(view, writable=rng.random() < 0.5)
            there.add(index)
        assert set(registrar.held) == {views[each][1] for each in there}
        assert pinned.is_registered(address, len(view)) is (index in there)
    pinned.clear()
    assert not registrar.held
