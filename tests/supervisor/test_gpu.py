from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from mmsup.supervisor.gpu import Gpu, Gpus, NoGpu, ask, choose, narrowed, parse, visible_devices

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


def test_plain_cuda_goes_where_least_is() -> None:
    assert choose("cuda", BOX, {H200.uuid: 5, L4.uuid: 2, T4.uuid: 3}) == L4
    assert choose("cuda", BOX, {H200.uuid: 5, L4.uuid: 2}) == T4


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
    assert narrowed(BOX, visible).devices == devices


def test_numbers_count_the_devices_that_the_server_sees() -> None:
    assert choose("cuda:0", narrowed(BOX, "2,0")) == T4
    with pytest.raises(NoGpu, match="CUDA_VISIBLE_DEVICES=-1 shows none"):
        choose("cuda:0", narrowed(BOX, "-1"))
    with pytest.raises(NoGpu, match="Shared Library"):
        choose("cuda:0", narrowed(NONE, "0"))


@pytest.mark.parametrize(
    ("device", "value"),
    [("cpu", ""), ("cuda", "0"), ("cuda:3", "3"), ("GPU-aaaa", "GPU-aaaa"), ("MIG-1234", "MIG-1234")],
)
def test_as_long_as_nobody_asked_nvml_a_device_is_taken_at_its_word(device: str, value: str) -> None:
    assert visible_devices(device) == value


def test_a_worker_on_the_cpu_sees_no_gpu() -> None:
    assert visible_devices("cpu", BOX) == visible_devices("cpu", NONE) == ""


def test_what_the_helper_prints_is_read_back() -> None:
    assert parse(json.dumps(asdict(BOX))) == BOX
    assert parse(json.dumps(asdict(NONE))) == NONE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"devices": [{}], "why": ""}', '{"devices": 3, "why": ""}', "\0"])
def test_nonsense_of_the_helper_is_no_gpu(text: str) -> None:
    assert parse(text) == Gpus((), "the GPU helper said nothing that can be read")


def fake_nvml(folder: Path, body: str) -> dict[str, str]:
    """An environment in which `import pynvml` finds this instead."""
    (folder / "pynvml.py").write_text(body)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


RECORDED = """
class NVMLError(Exception): pass
class Memory: total = 150754820096
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 3
def nvmlDeviceGetHandleByIndex(index):
    if index == 1:
        raise NVMLError("GPU is lost")
    return index
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetName(handle): return "NVIDIA H200"
def nvmlDeviceGetMemoryInfo(handle):
    if handle == 2:
        raise NVMLError("Not Supported")
    return Memory
"""


@pytest.mark.slow
def test_a_lost_device_does_not_hide_the_others(tmp_path: Path) -> None:
    found = asyncio.run(ask(fake_nvml(tmp_path, RECORDED)))
    assert found.devices == (Gpu(0, "GPU-0", "NVIDIA H200", 150754820096), Gpu(2, "GPU-2", "NVIDIA H200", 0))


@pytest.mark.slow
@pytest.mark.fault("F21")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('Driver Not Loaded')", "NVML: Driver Not"),
        ("raise ImportError", "nvidia-ml-py is not installed"),
        ("raise SystemExit(3)", "nothing that can be read"),
        ("import os; os.abort()", "nothing that can be read"),
        ("import time; time.sleep(1000)", "did not answer within 1 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "did not answer within 1 s"),
    ],
)
def test_a_helper_that_fails_or_hangs_is_no_gpu_and_leaves_nothing(tmp_path: Path, body: str, why: str) -> None:
    before = os.listdir("/proc/self/fd")
    found = asyncio.run(ask(fake_nvml(tmp_path, body), 1.0))
    assert found.devices == ()
    assert why in found.why
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text()
