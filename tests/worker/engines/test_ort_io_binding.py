"""Which runs of an ONNX session are bound to given memory, and which bindings are cached."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmsup.ipc.tensors.numpy_arrays import Array
from mmsup.worker.engines.ort_io_binding import (
    CACHE_LIMIT,
    MIN_BIND_BYTES,
    BindingKey,
    IoBindings,
    binding_key,
    mismatched_outputs,
)

LARGE = MIN_BIND_BYTES // 4
BINDABLE = {"y", "z"}


def floats(count: int = LARGE) -> Array:
    return np.zeros(count, np.float32)


def sealed(array: Array) -> Array:
    array.flags.writeable = False
    return array


def odd(array: Array) -> Array:
    """The same values at an address that is no multiple of the element's size."""
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return memory.view(array.dtype)


@pytest.mark.parametrize(
    ("inputs", "buffers", "is_bound"),
    [
        ({"x": floats()}, {"y": floats()}, True),
        ({"x": sealed(floats())}, {"y": floats()}, True),
        ({"x": floats(1)}, {"y": floats()}, True),
        ({"x": floats(), "w": np.zeros((3, 2), np.int64)}, {"y": floats()}, True),
        ({"x": floats()}, {"y": floats(LARGE // 2), "z": floats(LARGE // 2)}, True),
        ({"x": floats()}, {}, False),
        ({"x": floats()}, {"y": floats(LARGE - 1)}, False),
        ({"x": floats()}, {"unknown": floats()}, False),
        ({"x": floats()}, {"y": sealed(floats())}, False),
        ({"x": floats()}, {"y": floats(2 * LARGE)[::2]}, False),
        ({"x": floats()}, {"y": odd(floats())}, False),
        ({"x": floats()}, {"y": floats().astype(">f4")}, False),
        ({"x": floats()}, {"y": np.zeros(LARGE * 2, ml_dtypes.bfloat16)}, False),
        ({"x": floats()}, {"y": np.full(LARGE, b"", np.object_)}, False),
        ({"x": floats(0)}, {"y": floats()}, False),
        ({"x": np.zeros((9, 8), np.float32).T}, {"y": floats()}, False),
        ({"x": odd(floats())}, {"y": floats()}, False),
        ({"x": np.array([b"text"], np.object_)}, {"y": floats()}, False),
        ({"x": np.zeros(3, ml_dtypes.bfloat16)}, {"y": floats()}, False),
    ],
)
def test_a_run_is_bound_where_that_pays_and_is_possible(
    inputs: dict[str, Array], buffers: dict[str, Array], is_bound: bool
) -> None:
    assert (binding_key(inputs, ("y", "z"), buffers, BINDABLE) is not None) is is_bound


def test_an_output_without_a_buffer_is_bound_to_no_address() -> None:
    x, y = np.zeros((2, 3), np.int64), floats()
    key = binding_key({"x": x}, ("z", "y"), {"y": y}, BINDABLE)
    assert key == (
        (("x", "cpu", 7, (2, 3), x.ctypes.data),),
        (("z", "cpu", 0, (), 0), ("y", "cpu", 1, (LARGE,), y.ctypes.data)),
    )


def test_outputs_that_do_not_fit_their_buffer_are_named() -> None:
    made = {"a": floats(2), "b": floats(2), "c": floats(2).astype(np.float64)}
    assert mismatched_outputs(made, {"a": floats(2), "b": floats(3), "c": floats(2), "d": floats(2)}) == {"b", "c"}


class Value:
    """An OrtValue."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def numpy(self) -> Array:
        return self.array


class Binding:
    """Like the real one it holds addresses, and returns what it allocated again unless it is bound again."""

    def __init__(self, arrays: dict[int, Array]) -> None:
        self.arrays = arrays
        self.inputs: list[tuple[Any, ...]] = []
        self.outputs: dict[str, Array | None] = {}

    def bind_input(self, *bound: Any) -> None:
        self.inputs.append(bound)

    def bind_output(self, name: str, device: str, number: int, *rest: Any) -> None:
        self.outputs[name] = self.arrays[rest[2]] if rest else None

    def get_outputs(self) -> list[Value]:
        return [Value(each) for each in self.outputs.values() if each is not None]

    def synchronize_inputs(self) -> None: ...

    def synchronize_outputs(self) -> None: ...


class Session:
    """A graph whose outputs are all the number of the run."""

    def __init__(self, passes_through: tuple[str, ...] = ()) -> None:
        self.arrays: dict[int, Array] = {}
        self.made: list[Binding] = []
        self.runs = 0
        self.passes_through = passes_through

    def buffer(self) -> Array:
        array = floats()
        self.arrays[array.ctypes.data] = array
        return array

    def io_binding(self) -> Binding:
        self.made.append(Binding(self.arrays))
        return self.made[-1]

    def run_with_iobinding(self, binding: Binding) -> None:
        self.runs += 1
        for name, bound in binding.outputs.items():
            array = floats() if bound is None or name in self.passes_through else bound
            array[:] = self.runs
            binding.outputs[name] = array


def key(x: Array, buffers: dict[str, Array]) -> BindingKey:
    found = binding_key({"x": x}, ("y", "z"), buffers, BINDABLE)
    assert found is not None
    return found


def test_the_same_addresses_are_bound_once() -> None:
    session = Session()
    bindings = IoBindings(session, "cpu")
    x, buffers = floats(), {"y": session.buffer(), "z": session.buffer()}
    for run in (1, 2, 3):
        made = bindings.run(key(x, buffers), buffers)
        assert made["y"] is buffers["y"]
        assert made["z"] is buffers["z"]
        assert (buffers["y"] == run).all()
    assert len(session.made) == 1


def test_a_result_that_the_session_allocated_is_not_overwritten_by_the_next_run() -> None:
    session = Session()
    bindings = IoBindings(session, "cpu")
    x, buffers = floats(), {"y": session.buffer()}
    results = [bindings.run(key(x, buffers), buffers)["z"] for _ in range(3)]
    assert [each[0] for each in results] == [1, 2, 3]
    assert len(session.made) == 1
    assert session.made[0].outputs["z"] is None, "nothing is held between two runs"


def test_the_least_recently_used_binding_is_evicted_first() -> None:
    session = Session()
    bindings = IoBindings(session, "cpu")
    buffers = {"y": session.buffer()}
    arrays = [floats() for _ in range(CACHE_LIMIT + 1)]
    for x in [*arrays[:CACHE_LIMIT], arrays[0], arrays[CACHE_LIMIT]]:  # the first is used again, so the second goes
        bindings.run(key(x, buffers), buffers)
    count = len(session.made)
    bindings.run(key(arrays[0], buffers), buffers)
    assert len(session.made) == count
    bindings.run(key(arrays[1], buffers), buffers)
    assert len(session.made) == count + 1


def test_no_binding_is_cached_that_copies_inputs_to_a_device_when_it_is_made() -> None:
    session = Session()
    bindings = IoBindings(session, "cuda")
    x, buffers = floats(), {"y": session.buffer()}
    for _ in range(2):
        bindings.run(key(x, buffers), buffers)
    assert len(session.made) == 2


def test_an_output_that_was_not_written_to_its_buffer_is_returned_as_it_is() -> None:
    session = Session(passes_through=("y",))
    bindings = IoBindings(session, "cpu")
    x, buffers = floats(), {"y": session.buffer()}
    for run in (1, 2):
        made = bindings.run(key(x, buffers), buffers)
        assert made["y"] is not buffers["y"]
        assert made["y"][0] == run
