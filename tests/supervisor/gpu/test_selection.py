from __future__ import annotations

import pytest

from mmsup.supervisor.gpu.inventory import Gpu, Gpus, visible_gpus
from mmsup.supervisor.gpu.selection import GpuCordoned, NoGpu, choose, resolve_auto, visible_devices

H200 = Gpu(0, "GPU-aaaa1111-0000-0000-0000-000000000000", "NVIDIA H200", 150_754_820_096)
L4 = Gpu(1, "GPU-aaaa2222-0000-0000-0000-000000000000", "NVIDIA L4", 24_152_899_584)
T4 = Gpu(2, "GPU-bbbb3333-0000-0000-0000-000000000000", "Tesla T4", 15_843_721_216)
BOX = Gpus((H200, L4, T4))
NONE = Gpus((), "NVML: NVML Shared Library Not Found")


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("cuda:0", H200),
        ("cuda:2", T4),
        (L4.uuid, L4),
        ("GPU-bbbb", T4),
        ("cuda", H200),
    ],
)
def test_a_device_is_found_by_number_or_uuid(device: str, gpu: Gpu) -> None:
    assert choose(device, BOX) == gpu
    assert visible_devices(device, BOX) == gpu.uuid


@pytest.mark.parametrize(
    ("loads", "gpu"),
    [
        ([(0, 0, 0, 5), (0, 0, 0, 2), (0, 0, 0, 3)], L4),
        ([(0, 0, 0, 5), (0, 0, 1, 2), (1, 0, 0, 0)], H200),
        ([(1, 0, 0, 0), (1, 0, 0, 0), (0, 0, 2, 9)], T4),
        ([(0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)], H200),
        ([(0, 9, 0, 0), (0, 0, 0, 7), (0, 0, 1, 0)], L4),
        ([(0, 9, 0, 0), (0, 8, 2, 7), (0, 9, 0, 0)], L4),
        ([(0, 9, 0, 0), (0, 0, 9, 9), (1, 0, 0, 0)], L4),
    ],
)
def test_plain_cuda_is_the_device_with_the_least_load(loads: list[tuple[int, int, int, int]], gpu: Gpu) -> None:
    load_of = dict(zip((H200.uuid, L4.uuid, T4.uuid), loads, strict=True))
    assert choose("cuda", BOX, load_of=load_of.__getitem__) == gpu


@pytest.mark.parametrize("device", ["cuda:3", "cuda:x", "cuda:-1", "GPU-aaaa", "GPU-cccc", "", "tpu"])
def test_a_device_that_does_not_exist_is_refused_with_a_list_of_those_that_do(device: str) -> None:
    with pytest.raises(NoGpu, match=r"is not here; there is cuda:0 \(NVIDIA H200, GPU-aaaa1111"):
        choose(device, BOX)


def test_without_a_gpu_the_reason_is_given() -> None:
    with pytest.raises(NoGpu, match=r"device 'cuda': there is no GPU here: NVML: NVML Shared Library Not Found"):
        choose("cuda", NONE)


def test_numbers_count_the_devices_that_the_server_sees() -> None:
    assert choose("cuda:0", visible_gpus(BOX, "2,0")) == T4
    with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES=-1 shows none"):
        choose("cuda:0", visible_gpus(BOX, "-1"))
    with pytest.raises(NoGpu, match="Shared Library"):
        choose("cuda:0", visible_gpus(NONE, "0"))


@pytest.mark.parametrize(
    ("device", "value"),
    [("cpu", ""), ("cuda", "0"), ("cuda:3", "3"), ("GPU-aaaa", "GPU-aaaa"), ("MIG-1234", "MIG-1234")],
)
def test_until_nvml_has_answered_a_device_is_passed_on(device: str, value: str) -> None:
    assert visible_devices(device) == value


def test_a_worker_on_the_cpu_sees_no_gpu() -> None:
    assert visible_devices("cpu", BOX) == visible_devices("cpu", NONE) == ""


@pytest.mark.parametrize("device", ["cuda:1", "GPU-aaaa2222", "cuda"])
def test_nothing_new_is_placed_on_a_cordoned_device(device: str) -> None:
    reasons = {L4.uuid: "3 faults"}
    if device == "cuda":
        assert choose(device, BOX, reasons) == H200
        reasons |= {H200.uuid: "a", T4.uuid: "b"}
    with pytest.raises(GpuCordoned, match=r"cuda:1 \(NVIDIA L4\) is set aside: 3 faults") as refused:
        choose(device, BOX, reasons)
    assert refused.value.code == "gpu_fault"


def test_a_part_of_a_device_can_be_cordoned_too() -> None:
    with pytest.raises(GpuCordoned, match="MIG-1 is set aside: b"):
        visible_devices("MIG-1", BOX, {"MIG-1": "b"})


@pytest.mark.parametrize(
    ("device", "gpus", "meaning"),
    [
        ("auto", NONE, "cpu"),
        ("auto", None, "cpu"),
        ("auto", BOX, "cuda"),
        ("cuda:1", NONE, "cuda:1"),
        ("cpu", BOX, "cpu"),
    ],
)
def test_auto_is_a_gpu_where_there_is_one(device: str, gpus: Gpus | None, meaning: str) -> None:
    assert resolve_auto(device, gpus) == meaning


def test_a_worker_on_auto_sees_the_least_loaded_gpu_or_none() -> None:
    assert visible_devices("auto", BOX) == H200.uuid
    assert visible_devices("auto", NONE) == visible_devices("auto", None) == ""
