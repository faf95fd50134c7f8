from __future__ import annotations

import pytest

from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.gpu.inventory import (
    Gpu,
    GpuCordoned,
    GpuProcess,
    Gpus,
    NoGpu,
    choose,
    parse,
    visible_devices,
    visible_gpus,
)

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
    ("burdens", "gpu"),
    [
        ([(0, 0, 5), (0, 0, 2), (0, 0, 3)], L4),
        ([(0, 0, 5), (0, 1, 2), (1, 0, 0)], H200),
        ([(1, 0, 0), (1, 0, 0), (0, 2, 9)], T4),
        ([(0, 0, 0), (0, 0, 0), (0, 0, 0)], H200),
    ],
)
def test_plain_cuda_goes_where_the_burden_is_least(burdens: list[tuple[int, int, int]], gpu: Gpu) -> None:
    of = dict(zip((H200.uuid, L4.uuid, T4.uuid), burdens, strict=True))
    assert choose("cuda", BOX, load_of=of.__getitem__) == gpu


@pytest.mark.parametrize("device", ["cuda:3", "cuda:x", "cuda:-1", "GPU-aaaa", "GPU-cccc", "", "tpu"])
def test_a_device_that_is_not_here_is_said_with_those_that_are(device: str) -> None:
    with pytest.raises(NoGpu, match=r"is not here; there is cuda:0 \(NVIDIA H200, GPU-aaaa1111"):
        choose(device, BOX)


def test_without_a_gpu_the_reason_is_given() -> None:
    with pytest.raises(NoGpu, match=r"device 'cuda': there is no GPU here: NVML: NVML Shared Library Not Found"):
        choose("cuda", NONE)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, (H200, L4, T4)),
        ("2,0", (T4, H200)),
        ("1", (L4,)),
        (f"{T4.uuid},1", (T4, L4)),
        ("0,9,1", (H200,)),
        ("-1", ()),
        ("", ()),
    ],
)
def test_what_the_server_itself_may_not_see_no_worker_gets(visible: str | None, devices: tuple[Gpu, ...]) -> None:
    assert visible_gpus(BOX, visible).devices == devices


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
def test_as_long_as_nobody_asked_nvml_a_device_is_taken_at_its_word(device: str, value: str) -> None:
    assert visible_devices(device) == value


def test_a_worker_on_the_cpu_sees_no_gpu() -> None:
    assert visible_devices("cpu", BOX) == visible_devices("cpu", NONE) == ""


def test_what_the_helper_prints_is_read_back() -> None:
    seen = Gpus((Gpu(0, "GPU-a", "H", 8, 3, 1, (GpuProcess(7, 5),)),))
    for each in (BOX, NONE, seen):
        assert parse(to_json(each)) == each


@pytest.mark.parametrize("text", ["", "[]", "{}", '["Gpus", [[1]], ""]', '["Gpus", 3, ""]', "\0"])
def test_nonsense_of_the_helper_is_no_gpu(text: str) -> None:
    assert parse(text.encode()) == Gpus((), "the GPU helper said nothing that can be read")


@pytest.mark.parametrize("device", ["cuda:1", "GPU-aaaa2222", "cuda"])
def test_nothing_new_goes_to_a_device_that_is_set_aside(device: str) -> None:
    reasons = {L4.uuid: "3 faults"}
    if device == "cuda":
        assert choose(device, BOX, reasons) == H200
        reasons |= {H200.uuid: "a", T4.uuid: "b"}
    with pytest.raises(GpuCordoned, match=r"cuda:1 \(NVIDIA L4\) is set aside: 3 faults") as refused:
        choose(device, BOX, reasons)
    assert refused.value.code == "gpu_fault"


def test_a_part_of_a_card_can_be_set_aside_too() -> None:
    with pytest.raises(GpuCordoned, match="MIG-1 is set aside: b"):
        visible_devices("MIG-1", BOX, {"MIG-1": "b"})
