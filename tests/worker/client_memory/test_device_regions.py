"""Tensors in memory of a GPU, copied by a worker whose CUDA driver is played: what is opened, copied and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.in_process_worker import InProcessWorker
from harness.played_cuda import PlayedCuda, handle_of
from mmsup.ipc.messages.data import DeviceRegion, ForgetHandle, Infer, InferReply, InferSignature, InferWithRegions
from mmsup.ipc.specs import INLINE_LIMIT_BYTES, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.ipc.transport.codec import pack_frame, pack_signature, unpack_frame
from mmsup.worker.client_memory import device_regions
from mmsup.worker.client_memory.cuda_memory import CudaMemory
from mmsup.worker.client_memory.device_regions import HANDLES_LIMIT, DeviceRegions, OpenHandles
from mmsup.worker.engines.device.cuda_driver import CudaDriver

UUID = "6a2f0c1e-0000-0000-0000-000000000001"
COUNTED = ("cuIpcOpenMemHandle_v2", "cuIpcCloseMemHandle", "cuMemcpyDtoH_v2", "cuMemcpyHtoD_v2")


class Scene:
    """One worker of a model that doubles `x`, its gateway, and memory of a client."""

    def __init__(self, folder: Path, *, is_on_gpu: bool = True, batch: int = 0) -> None:
        self.folder = folder
        self.cuda = PlayedCuda(str(folder), UUID)
        self.handles = OpenHandles(lambda: CudaMemory(CudaDriver(self.cuda)), is_on_gpu=is_on_gpu)
        self.ran = 0
        self.last_id = 0
        shape = (-1,)
        tensors = [(TensorSpec(name, "FP32", shape),) for name in "xy"]
        self.worker = InProcessWorker(self.double, *tensors, max_batch_size=batch)
        handler = self.worker.loop._handler
        handler.replies.regions = DeviceRegions(handler._executor.spec, self.handles)

    def double(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.ran += 1
        return {"y": inputs["x"] * np.float32(2)}

    def memory(self, name: str, *values: float, size: int = 64) -> bytes:
        data = np.array(values, np.float32).tobytes()
        (self.folder / name).write_bytes(data.ljust(size, b"\0"))
        return handle_of(name)

    def floats(self, name: str, offset: int, count: int) -> list[float]:
        data = (self.folder / name).read_bytes()[offset : offset + 4 * count]
        return [float(each) for each in np.frombuffer(data, np.float32)]

    def request(self, *regions: DeviceRegion, shape: tuple[int, ...] = (2,), data: bytes = b"name") -> InferWithRegions:
        self.last_id += 1
        signature = pack_signature(InferSignature((TensorSpec("x", "FP32", shape),), (), {}))
        return InferWithRegions(self.last_id, signature, 1 << 62, None, (data,), regions)

    def replies(self, *records: Any) -> list[InferReply]:
        end = self.worker.ends[0]
        assert end is not None
        assert end.send(pack_frame(records))
        self.worker.run()
        return [reply for frame in self.worker.frames(0) for reply in unpack_frame(frame)]

    def counts(self) -> tuple[int, ...]:
        """Opened, closed, copied in, copied out."""
        return tuple(self.cuda.calls[each] for each in COUNTED)


Make = Callable[..., Scene]


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made: list[Scene] = []

    def make(**more: Any) -> Scene:
        made.append(Scene(tmp_path, **more))
        return made[-1]

    yield make
    for each in made:
        each.worker.__exit__(None, None, None)


def at(handle: bytes, place: int, offset: int = 0, size: int = 8, device: str = f"GPU-{UUID}") -> DeviceRegion:
    return DeviceRegion(place, "x" if place >= 0 else "y", "r", 0, device, handle, offset, size)


def test_a_tensor_is_read_and_written_where_it_lies_and_a_handle_is_opened_once(scene: Make) -> None:
    one = scene()
    handle = one.memory("a", 1, 2)
    for number in range(1, 4):
        one.memory("a", number, 2)
        (reply,) = one.replies(one.request(at(handle, 0), at(handle, -1, 16, 48)))
        assert (reply.id, reply.code) == (number, "")
        assert one.floats("a", 16, 3) == [2 * number, 4, 0]
        assert one.counts() == (1, 0, number, number)
    assert one.cuda.depth == 0
    assert one.replies(ForgetHandle(handle), ForgetHandle(handle), ForgetHandle(handle_of("never"))) == []
    assert one.counts() == (1, 1, 3, 3)
    assert one.cuda.opened == {}
    (reply,) = one.replies(one.request(at(handle, 0)))
    assert (reply.code, one.counts()) == ("", (2, 1, 4, 3))


def test_requests_without_such_memory_never_open_the_driver(scene: Make) -> None:
    one = scene()
    plain = one.request(data=np.array([1, 2], np.float32).tobytes())
    for number in range(4):  # it becomes a known one
        (reply,) = one.replies(Infer(10 + number, plain.signature, 1 << 62, None, plain.locations))
        assert reply.code == ""
    assert one.cuda.calls == {}
    handle = one.memory("a", 7, 8)
    (reply,) = one.replies(one.request(at(handle, 0), at(handle, -1)))
    assert (reply.code, one.floats("a", 0, 2)) == ("", [14, 16])


def test_requests_of_a_batch_are_each_written_where_they_belong(scene: Make) -> None:
    one = scene(batch=4)
    handles = [one.memory(name, number, number) for number, name in enumerate("abc")]
    requests = [one.request(at(each, 0), at(each, -1, 32), shape=(1, 2)) for each in handles]
    assert [each.code for each in one.replies(*requests)] == [""] * 3
    assert [one.floats(name, 32, 2) for name in "abc"] == [[0, 0], [2, 2], [4, 4]]
    assert one.ran < 3


@pytest.mark.parametrize("size", [2, INLINE_LIMIT_BYTES])
def test_an_output_that_is_too_large_is_not_written(size: int, scene: Make) -> None:
    one = scene()
    handle = one.memory("a", *[1.0] * size, size=1 << 20)
    wanted = at(handle, 0, size=4 * size), at(handle, -1, 0, 4 * size - 1)
    (reply,) = one.replies(one.request(*wanted, shape=(size,)))
    assert reply.code == "bad_request"
    assert f"has {4 * size} bytes, but shared_memory_byte_size {4 * size - 1}" in reply.text
    assert one.floats("a", 0, 2) == [1, 1]


def test_a_failure_is_said_before_the_run_and_the_worker_goes_on(scene: Make) -> None:
    one = scene()
    handle = one.memory("a", 1, 2)
    tries = {
        "CUDA error 400": (at(handle_of("gone"), 0),),
        "CUDA error 400)": (at(handle, 0), at(handle_of("gone"), -1)),
        "runs on GPU-6a2f0c1e-0000-0000-0000-000000000001": (at(handle, 0, device="GPU-other"),),
        "needs 68 bytes of shared memory region 'r', whose memory has 64": (at(handle, 0, 60),),
    }
    for says, regions in tries.items():
        (reply,) = one.replies(one.request(*regions))
        assert (reply.code, reply.id) == ("bad_request", one.last_id)
        assert says in reply.text
    assert one.ran == 0
    for function, code, expected in (
        ("cuMemcpyDtoH_v2", 1, "bad_request"),
        ("cuMemcpyDtoH_v2", 700, "gpu_fault"),
        ("cuIpcOpenMemHandle_v2", 2, "gpu_oom"),
        ("cuMemcpyHtoD_v2", 719, "gpu_fault"),
        ("cuCtxPushCurrent_v2", 201, "bad_request"),
    ):
        one.replies(ForgetHandle(handle))
        one.cuda.refusals = {function: code}
        (reply,) = one.replies(one.request(at(handle, 0), at(handle, -1)))
        assert (reply.code, f"CUDA error {code}" in reply.text) == (expected, True)
    one.cuda.refusals = {"cuMemGetAddressRange_v2": 1, "cuIpcCloseMemHandle": 1}  # neither ends anything
    (reply,) = one.replies(one.request(at(handle, 0)), ForgetHandle(handle))
    assert reply.code == ""


def test_a_worker_without_a_gpu_or_a_driver_says_so(scene: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene(is_on_gpu=False)
    handle = one.memory("a", 1, 2)
    (reply,) = one.replies(one.request(at(handle, 0)))
    assert reply.code == "bad_request"
    assert "the model runs on the CPU" in reply.text
    assert one.cuda.calls == {}
    monkeypatch.setattr(device_regions, "open_driver", lambda: None)
    two = scene()
    two.worker.loop._handler.replies.regions._handles = OpenHandles(device_regions._driver_memory, is_on_gpu=True)
    (reply,) = two.replies(two.request(at(handle, 0)))
    assert (reply.code, "the CUDA driver does not work" in reply.text) == ("unsupported", True)


def test_handles_are_bounded_and_those_not_used_lately_are_closed(scene: Make) -> None:
    one = scene()
    names = [f"n{number}" for number in range(HANDLES_LIMIT + 3)]
    for name in names:
        one.replies(one.request(at(one.memory(name, 1, 2), 0)))
        one.replies(one.request(at(handle_of(names[0]), 0)))
    assert one.counts()[:2] == (HANDLES_LIMIT + 3, 3)
    assert len(one.cuda.opened) == HANDLES_LIMIT


def test_a_region_that_was_unregistered_during_a_request_is_written_and_closed(scene: Make) -> None:
    one = scene()
    handle = one.memory("a", 1, 2)
    (reply,) = one.replies(one.request(at(handle, 0), at(handle, -1, 16)), ForgetHandle(handle))
    assert (reply.code, one.floats("a", 16, 2)) == ("", [2, 4])
    assert one.cuda.opened == {}
    assert one.counts() == (2, 2, 1, 1)


def test_a_place_that_the_request_does_not_have_is_an_error_of_ours_and_no_end(scene: Make) -> None:
    one = scene()
    (reply,) = one.replies(one.request(at(one.memory("a", 1, 2), 5)))
    assert reply.code == "inference_failed"
