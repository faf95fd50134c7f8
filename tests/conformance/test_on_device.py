"""PyTorch with batches transferred to a device: on the CPU as the device, and on CUDA where there is one."""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tritonclient.http as httpclient

from engines.build import write_exported, write_safetensors, write_torchscript
from harness.server import serving
from mmsup.ipc.memory.arena import AttachedExtents, Extent
from mmsup.ipc.specs import ModelSpec, TensorSpec
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.engines.device.chunking import DEFAULT_SIZES

if TYPE_CHECKING:
    from mmsup.worker.engines.pytorch import PytorchEngine

NUMBERS = tuple(sorted(NUMPY.keys() - {"BYTES"}))
LARGE = 40_000
"""Elements: enough for a copy of its own in any datatype of two bytes and more."""

pytestmark = pytest.mark.slow  # torch takes two seconds to import


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    import torch

    if request.param != "cpu" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    return str(request.param)


def sample(datatype: str, shape: tuple[int, ...], start: int = 0) -> Array:
    array = (np.arange(int(np.prod(shape))) % 100 + start).reshape(shape).astype(NUMPY[datatype])
    array.flags.writeable = False
    return array


def engine_for(spec: ModelSpec, device: str) -> PytorchEngine:
    from mmsup.worker.engines.pytorch import PytorchEngine

    engine = PytorchEngine(use_streams=True)
    engine.load(replace(spec, device=device))
    return engine


@pytest.mark.parametrize("datatype", NUMBERS)
@pytest.mark.parametrize("shape", [(3,), (0,), (LARGE,), (2, LARGE)])
def test_every_datatype_comes_back_as_it_went(
    datatype: str, shape: tuple[int, ...], device: str, tmp_path: Path
) -> None:
    engine = engine_for(write_torchscript(tmp_path, "m", datatype, (-1,) * len(shape)), device)
    array, buffer = sample(datatype, shape), np.zeros(shape, NUMPY[datatype])
    for buffers in ({}, {"OUTPUT__0": buffer}):
        made = engine.infer({"INPUT__0": array}, ("OUTPUT__0",), buffers)["OUTPUT__0"]
        assert made.dtype == array.dtype
        assert made.shape == shape
        assert made.tobytes() == array.tobytes()
    assert (made is buffer) is (array.nbytes >= DEFAULT_SIZES.direct)
    engine.unload()
    assert engine.device_bytes() == 0


@pytest.mark.parametrize("fixed", ["false", "true"])
def test_jobs_of_a_batch_get_their_own_rows_in_their_own_buffer(fixed: str, device: str, tmp_path: Path) -> None:
    spec = write_torchscript(tmp_path, "m", "FP32", (LARGE,), 16)
    engine = engine_for(replace(spec, parameters={"fixed_batch_sizes": fixed}), device)
    assert engine.assembles_batches
    for turn in range(3):
        jobs = [{"INPUT__0": sample("FP32", (rows, LARGE), 10 * rows + turn)} for rows in (1, 3, 2, 5)]
        buffers = [{"OUTPUT__0": np.zeros_like(job["INPUT__0"])} for job in jobs]
        del buffers[2]["OUTPUT__0"]
        results = engine.run_batch(jobs, ("OUTPUT__0",), buffers)
        for index, (job, result, buffer) in enumerate(zip(jobs, results, buffers, strict=True)):
            assert result["OUTPUT__0"].tobytes() == job["INPUT__0"].tobytes()
            assert index == 2 or result["OUTPUT__0"] is buffer["OUTPUT__0"]
    engine.unload()


def test_a_batch_of_several_chunks_gives_the_same_as_one(device: str, tmp_path: Path) -> None:
    width = 3 << 20  # 12.6 MB a row: a chunk of two rows
    engine = engine_for(write_torchscript(tmp_path, "m", "FP32", (width,), 8), device)
    jobs = [{"INPUT__0": np.full((1, width), each, np.float32)} for each in range(6)]
    results = engine.run_batch(jobs, ("OUTPUT__0",), [{} for _ in jobs])
    assert [(each["OUTPUT__0"].min(), each["OUTPUT__0"].max()) for each in results] == [(n, n) for n in range(6)]
    engine.unload()


ROWS = """
import torch


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.full_like(x, len(x)) + x.sum() * self.scale
"""
"""`y`: how many rows there are, plus the sum of them all, times the scale."""


@pytest.mark.parametrize(("fixed", "seen"), [("false", 3), ("true", 4)])
def test_a_module_sees_padded_batches_if_it_wants_them(fixed: str, seen: int, device: str, tmp_path: Path) -> None:
    spec = write_safetensors(tmp_path, "m", scale=10.0)
    Path(spec.directory, "model.py").write_text(ROWS)
    x, y = (TensorSpec(name, "FP32", (1,)) for name in "xy")
    spec = replace(spec, max_batch_size=8, inputs=(x,), outputs=(y,), parameters={"fixed_batch_sizes": fixed})
    engine = engine_for(spec, device)
    engine.run_batch([{"x": np.full((4, 1), 7, np.float32)}], ("y",), [{}])  # leaves sevens behind
    results = engine.run_batch([{"x": np.ones((rows, 1), np.float32)} for rows in (1, 2)], ("y",), [{}, {}])
    assert [each["y"].tolist() for each in results] == [[[seen + 30]], [[seen + 30]] * 2]
    engine.unload()


def test_several_inputs_and_outputs_are_not_mixed(device: str, tmp_path: Path) -> None:
    given = (TensorSpec("a", "FP32", (4,)), TensorSpec("b", "FP32", (4,)))
    engine = engine_for(replace(write_exported(tmp_path, "m", max_batch=8), inputs=given, max_batch_size=8), device)
    jobs = [{"b": sample("FP32", (rows, 4), 1), "a": sample("FP32", (rows, 4), 5 * rows)} for rows in (2, 3)]
    results = engine.run_batch(jobs, ("difference", "total"), [{}, {}])
    for job, result in zip(jobs, results, strict=True):
        assert (result["total"] == job["a"] + job["b"]).all()
        assert (result["difference"] == job["a"] - job["b"]).all()
    engine.unload()


def test_a_module_may_work_in_place(device: str, tmp_path: Path) -> None:
    engine = engine_for(write_safetensors(tmp_path, "m", scale=3.0), device)
    array = sample("FP32", (LARGE,))
    for _ in range(2):
        assert (engine.infer({"x": array}, ("y",))["y"] == array * 3).all()
    engine.unload()


def test_jobs_of_other_shapes_are_refused_and_the_next_batch_runs(device: str, tmp_path: Path) -> None:
    engine = engine_for(write_torchscript(tmp_path, "m", "FP32", (-1,), 8), device)
    jobs = [{"INPUT__0": sample("FP32", (1, width))} for width in (3, 4)]
    with pytest.raises(ValueError, match="cannot be one batch"):
        engine.run_batch(jobs, ("OUTPUT__0",), [{}, {}])
    results = engine.run_batch(jobs[:1] * 2, ("OUTPUT__0",), [{}, {}])
    assert [each["OUTPUT__0"].tolist() for each in results] == [jobs[0]["INPUT__0"].tolist()] * 2
    engine.unload()


def test_freed_buffers_are_allocated_again(device: str, tmp_path: Path) -> None:
    engine = engine_for(write_torchscript(tmp_path, "m", "FP32", (-1,), 8), device)
    job = {"INPUT__0": sample("FP32", (2, LARGE))}
    for _ in range(2):
        assert engine.infer(job, ("OUTPUT__0",))["OUTPUT__0"].tobytes() == job["INPUT__0"].tobytes()
        engine.shrink()
    engine.unload()


@pytest.mark.parametrize("write", [write_safetensors, write_torchscript, write_exported])
def test_a_model_that_was_offloaded_is_back_with_the_same_answers(
    write: Callable[[Path, str], ModelSpec], device: str, tmp_path: Path
) -> None:
    pins = "true" if device != "cpu" and write is write_safetensors else "false"
    engine = engine_for(replace(write(tmp_path, "m"), parameters={"pinned_offload": pins}), device)
    tensors, output = {
        write_safetensors: (("x",), "y"),
        write_torchscript: (("INPUT__0",), "OUTPUT__0"),
        write_exported: (("x", "y"), "total"),
    }[write]
    job = {name: sample("FP32", (3, 4)) for name in tensors}
    before, held_bytes = engine.infer(job, (output,))[output].tobytes(), engine.device_bytes()
    assert engine.can_offload == (device != "cpu")
    for _ in range(2):
        engine.offload()
        assert engine.device_bytes() < held_bytes or device == "cpu"
        engine.restore()
        assert engine.infer(job, (output,))[output].tobytes() == before
    engine.unload()


def shared(segment: int, *, writable: bool) -> tuple[Extent, memoryview]:
    """An extent, and a worker's own mapping of it."""
    extent, attached = Extent(segment, 1 << 20, writable_by_worker=writable), AttachedExtents()
    attached.attach(segment, os.dup(extent.fd), extent.size, writable=writable)
    view = attached.view(segment, 0, extent.size, writable=writable)
    assert view is not None
    return extent, view


def test_extents_of_a_gateway_work_before_while_and_after_they_are_registered(device: str, tmp_path: Path) -> None:
    """On the CPU nothing is registered; the numbers are the same."""
    engine = engine_for(write_torchscript(tmp_path, "m", "FP32", (LARGE,), 8), device)
    (given, given_view), (made, made_view) = shared(0, writable=False), shared(1, writable=True)
    x = sample("FP32", (1, LARGE))
    given.view(0, x.nbytes)[:] = x.tobytes()
    array = np.frombuffer(given_view, np.float32, LARGE).reshape(1, LARGE)
    buffer = np.frombuffer(made_view, np.float32, LARGE).reshape(1, LARGE)

    def serves() -> bool:
        buffer[:] = 0
        (result,) = engine.run_batch([{"INPUT__0": array}], ("OUTPUT__0",), [{"OUTPUT__0": buffer}])
        return result["OUTPUT__0"] is buffer and bytes(made.view(0, x.nbytes)) == x.tobytes()

    assert serves()
    engine.pinned_memory.register(given_view, writable=False)
    engine.pinned_memory.register(made_view, writable=True)
    assert serves()
    engine.pinned_memory.unregister(given_view)
    engine.pinned_memory.unregister(made_view)
    assert serves()
    engine.unload()
    given.close()
    made.close()


class ClientMemory:
    """Memory of device 0 that this process has, by the driver alone: torch's handles are of blocks of its own."""

    def __init__(self, size: int) -> None:
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            pytest.skip(f"no CUDA driver here: {error}")
        self.size, self.context, self.address = size, ctypes.c_void_p(), ctypes.c_uint64()
        if self._driver.cuInit(0):
            pytest.skip("the CUDA driver finds no device here")
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), ctypes.c_int(0))
        self._call("cuCtxSetCurrent", self.context)
        self._call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(size))

    def _call(self, name: str, *arguments: Any) -> None:  # ctypes values
        code = getattr(self._driver, name)(*arguments)
        assert code == 0, f"{name}: error {code}"

    def handle(self) -> bytes:
        made = (ctypes.c_char * 64)()
        self._call("cuIpcGetMemHandle", made, self.address)
        return base64.b64encode(bytes(made))

    def put(self, data: Array) -> None:
        address, size = ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(data.nbytes)
        self._call("cuMemcpyHtoD_v2", self.address, address, size)

    def get(self) -> Array:
        made = np.empty(self.size // 4, np.float32)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(made.ctypes.data), self.address, ctypes.c_size_t(self.size))
        return made

    def free(self) -> None:
        self._call("cuMemFree_v2", self.address)
        self._call("cuDevicePrimaryCtxRelease_v2", ctypes.c_int(0))


@pytest.mark.gpu
def test_a_client_s_memory_of_the_device_is_read_and_written(tmp_path: Path) -> None:
    client_memory = ClientMemory(3 * 4 * LARGE)
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.py").write_text(
        "class Model:\n    def infer(self, i):\n        return {'y': i['x'] * 2}\n"
    )
    tensors = "inputs: [{name: x, datatype: FP32, shape: [-1]}]\noutputs: [{name: y, datatype: FP32, shape: [-1]}]\n"
    (tmp_path / "m" / "mmsup.yaml").write_text(f"{tensors}device: cuda:0\n")
    given = np.arange(LARGE, dtype=np.float32)
    client_memory.put(np.concatenate([given, np.zeros(2 * LARGE, np.float32)]))
    with serving(tmp_path) as server:
        host, port = server.address()
        with httpclient.InferenceServerClient(f"{host}:{port}", network_timeout=60) as client:
            client.register_cuda_shared_memory("r", client_memory.handle(), 0, client_memory.size)
            x, y = httpclient.InferInput("x", [LARGE], "FP32"), httpclient.InferRequestedOutput("y")
            x.set_shared_memory("r", given.nbytes)
            y.set_shared_memory("r", given.nbytes, offset=given.nbytes)
            for _ in range(3):
                client.infer("m", [x], outputs=[y])
            client.unregister_cuda_shared_memory("r")
    read = client_memory.get()
    client_memory.free()
    np.testing.assert_array_equal(read, np.concatenate([given, given * 2, np.zeros(LARGE, np.float32)]))
