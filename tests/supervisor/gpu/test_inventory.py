from __future__ import annotations

import pytest

from mmsup.ipc.transport.dataclass_codec import to_json
from mmsup.supervisor.gpu.inventory import Gpu, GpuProcess, Gpus, gpu_label, parse, visible_gpus

H200 = Gpu(0, "GPU-aaaa1111-0000-0000-0000-000000000000", "NVIDIA H200", 150_754_820_096)
L4 = Gpu(1, "GPU-aaaa2222-0000-0000-0000-000000000000", "NVIDIA L4", 24_152_899_584)
T4 = Gpu(2, "GPU-bbbb3333-0000-0000-0000-000000000000", "Tesla T4", 15_843_721_216)
BOX = Gpus((H200, L4, T4))
NONE = Gpus((), "NVML: NVML Shared Library Not Found")


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
def test_devices_that_the_server_does_not_see_are_left_out(visible: str | None, devices: tuple[Gpu, ...]) -> None:
    assert visible_gpus(BOX, visible).devices == devices


def test_parts_of_a_card_that_the_server_does_not_see_are_left_out_and_others_found() -> None:
    part = Gpu(0, "MIG-a", "NVIDIA H200 MIG 0", 1 << 30, card=H200.uuid)
    divided = Gpus(BOX.devices, parts=(part,))
    assert visible_gpus(divided, "0").find("MIG-a") == visible_gpus(divided, None).find("MIG-a") == part
    assert visible_gpus(divided, "1,2").parts == ()
    assert gpu_label(divided, part) == "MIG-a (NVIDIA H200 MIG 0)"


def test_an_answer_of_the_helper_is_parsed() -> None:
    part = Gpu(0, "MIG-a", "M", 4, card="GPU-a")
    seen = Gpus((Gpu(0, "GPU-a", "H", 8, 3, 1, (GpuProcess(7, 5),), "00000000:3B:00.0"),), parts=(part,))
    for each in (BOX, NONE, seen):
        assert parse(to_json(each)) == each


@pytest.mark.parametrize("text", ["", "[]", "{}", '["Gpus", [[1]], ""]', '["Gpus", 3, ""]', "\0"])
def test_an_invalid_answer_of_the_helper_is_no_gpu(text: str) -> None:
    assert parse(text.encode()) == Gpus((), "the answer of the GPU helper cannot be read")
