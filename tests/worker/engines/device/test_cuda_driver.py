"""The calls to the CUDA driver, against a fake library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from mmsup.worker.engines.device.cuda_driver import HOST_REGISTER_READ_ONLY, CudaDriver, open_driver


class Library:
    """Returns 0, or the error that a test wants; records names and plain arguments."""

    def __init__(self, read_only: int = 1, **errors: int) -> None:
        self.read_only = read_only
        self.errors = errors
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append((name, *[each.value for each in arguments if hasattr(each, "value")]))
            if name == "cuDevicePrimaryCtxRetain":
                arguments[0]._obj.value = 0xC0
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = self.read_only
            return self.errors.get(name, 0)

        return call

    def names(self) -> list[str]:
        return [each[0] for each in self.calls]


def test_memory_is_registered_within_the_primary_context_which_is_then_popped() -> None:
    library = Library()
    driver = CudaDriver(library)
    library.calls.clear()
    assert driver.register(0x7000, 1 << 24, 8) == ""
    assert driver.unregister(0x7000) == ""
    assert library.calls == [
        ("cuCtxPushCurrent_v2", 0xC0),
        ("cuMemHostRegister_v2", 0x7000, 1 << 24, 8),
        ("cuCtxPopCurrent_v2",),
        ("cuCtxPushCurrent_v2", 0xC0),
        ("cuMemHostUnregister", 0x7000),
        ("cuCtxPopCurrent_v2",),
    ]


def test_an_error_is_returned_and_the_context_is_popped_all_the_same() -> None:
    library = Library(cuMemHostRegister_v2=712)
    driver = CudaDriver(library)
    assert driver.register(0x7000, 4096, 0) == "cuMemHostRegister_v2: error 712"
    assert library.names()[-1] == "cuCtxPopCurrent_v2"
    assert CudaDriver(Library(cuCtxPushCurrent_v2=201)).register(0x7000, 4096, 0) == "cuCtxPushCurrent: error 201"


@pytest.mark.parametrize(
    ("value", "errors", "can"), [(1, {}, True), (0, {}, False), (1, {"cuDeviceGetAttribute": 1}, False)]
)
def test_the_device_is_asked_whether_it_registers_read_only_memory(
    value: int, errors: dict[str, int], *, can: bool
) -> None:
    library = Library(value, **errors)
    assert CudaDriver(library).registers_read_only is can
    assert ("cuDeviceGetAttribute", HOST_REGISTER_READ_ONLY, 0) in library.calls


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_refuses_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library(**{name: 100}))
    assert open_driver() is None


def test_without_a_driver_there_is_none() -> None:
    assert open_driver("libmmsup-has-no-such-driver.so.1") is None
