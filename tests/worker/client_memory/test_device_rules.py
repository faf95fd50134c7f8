"""What a worker says of memory of a GPU that it cannot use."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmsup.ipc.messages.data import DeviceRegion
from mmsup.worker.client_memory import device_rules

UUID = "6A2F0C1E-0000-0000-0000-000000000001"
INPUT = DeviceRegion(0, "x", "r", 1, f"GPU-{UUID}", bytes(64), 16, 8)
OUTPUT = replace(INPUT, place=-1, tensor="y")


@pytest.mark.parametrize(
    ("own", "says"),
    [
        (UUID.lower(), ""),
        (f"GPU-{UUID}", ""),
        (None, "but the model runs on the CPU"),
        ("", "but the model runs on a GPU whose driver does not name it"),
        ("91b07d33", "but the model runs on GPU-91b07d33: use memory of that device, or send the tensor"),
    ],
)
def test_only_a_worker_on_the_device_of_a_region_uses_it(own: str | None, says: str) -> None:
    failure = device_rules.device_failure(INPUT, own, "m")
    if not says:
        assert failure is None
        return
    assert failure is not None
    assert failure.code == "bad_request"
    assert failure.text.startswith(f"input 'x' for model 'm' is in shared memory region 'r' of device 1 (GPU-{UUID})")
    assert says in failure.text


@pytest.mark.parametrize(("size", "fits"), [(24, True), (25, True), (None, True), (23, False), (0, False)])
def test_a_tensor_lies_in_the_memory_that_its_region_really_has(size: int | None, *, fits: bool) -> None:
    failure = device_rules.range_failure(INPUT, size, "m")
    assert (failure is None) is fits
    if failure is not None:
        assert f"needs 24 bytes of shared memory region 'r', whose memory has {size}" in failure.text


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        (1, "bad_request", "it is no such memory (CUDA error 1)"),
        (2, "gpu_oom", "no memory left for it (CUDA error 2)"),
        (201, "bad_request", "a process cannot open its own memory"),
        (400, "bad_request", "its handle is not valid, or its owner is gone (CUDA error 400)"),
        (713, "bad_request", "cannot be used: CUDA error 713"),
        (801, "bad_request", "does not share memory between processes"),
        (12345, "bad_request", "cannot be used: CUDA error 12345"),
        (700, "gpu_fault", "the device of the model failed (CUDA error 700)"),
        (719, "gpu_fault", "the device of the model failed (CUDA error 719)"),
        (999, "gpu_fault", "the device of the model failed (CUDA error 999)"),
    ],
)
def test_what_the_driver_refuses_is_said_with_the_region(code: int, expected: str, says: str) -> None:
    failure = device_rules.driver_failure(OUTPUT, code, "m")
    assert failure.code == expected
    assert failure.text.startswith("output 'y' of model 'm': shared memory region 'r' of device 1")
    assert says in failure.text


@pytest.mark.parametrize(("size", "fits"), [(0, True), (8, True), (9, False)])
def test_an_output_fits_where_the_client_wants_it(size: int, *, fits: bool) -> None:
    failure = device_rules.output_failure(OUTPUT, size, "m")
    assert (failure is None) is fits
    if failure is not None:
        assert failure.text == "output 'y' of model 'm' has 9 bytes, but shared_memory_byte_size 8"
