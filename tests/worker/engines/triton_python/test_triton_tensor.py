from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmsup.ipc.tensors.numpy_arrays import NUMPY
from mmsup.worker.engines.triton_python.api.datatypes import (
    numpy_to_triton_type,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from mmsup.worker.engines.triton_python.api.errors import TritonModelException
from mmsup.worker.engines.triton_python.api.request import InferenceRequest
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_each_datatype_has_a_number_and_a_type_of_numpy(datatype: str) -> None:
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    kind = triton_string_to_numpy(name)
    assert np.dtype(kind) == NUMPY[datatype]
    number = numpy_to_triton_type(kind)
    assert number is not None
    assert np.dtype(triton_to_numpy_type(number)) == NUMPY[datatype]


def test_text_and_bytes_of_numpy_are_strings_and_what_is_no_tensor_has_no_number() -> None:
    assert numpy_to_triton_type(np.dtype("S3")) == numpy_to_triton_type(np.dtype("U3")) == 13
    assert numpy_to_triton_type(np.complex64) is None
    assert triton_to_numpy_type(99) is None


def test_a_tensor_says_its_name_shape_and_values() -> None:
    tensor = BackendTensor("x", np.ones((2, 3), np.float32).T)
    assert (tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.triton_dtype()) == ("x", [3, 2], True, 11)
    assert tensor.as_numpy().flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "array", "text"),
    [
        ("", np.zeros(1), "Tensor name cannot be an empty string"),
        ("x", [1.0], "made of a numpy array, not of a list"),
        ("x", np.zeros(1, np.complex64), "cannot be of dtype complex64"),
    ],
)
def test_what_is_no_tensor_is_refused(name: str, array: Any, text: str) -> None:
    with pytest.raises((TypeError, TritonModelException), match=text):
        BackendTensor(name, array)


@pytest.mark.parametrize("is_capsule", [False, True])
def test_tensors_of_numpy_are_exchanged_without_a_copy(is_capsule: bool) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    tensor = BackendTensor.from_dlpack("x", array.__dlpack__() if is_capsule else array)
    assert tensor.as_numpy().tolist() == array.tolist()
    array[0, 0] = 7
    assert tensor.as_numpy()[0, 0] == 7
    assert np.from_dlpack(tensor)[0, 0] == 7


def test_a_read_only_input_is_given_by_dlpack_too() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    assert np.from_dlpack(BackendTensor("x", array)).tolist() == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("is_capsule", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_of_torch_are_exchanged(is_capsule: bool, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    source = torch.arange(3, dtype=getattr(torch, dtype))
    given = torch.utils.dlpack.to_dlpack(source) if is_capsule else source
    tensor = BackendTensor.from_dlpack("x", given)
    assert tensor.as_numpy().astype(np.float32).tolist() == [0.0, 1.0, 2.0]
    assert tensor.as_numpy().dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    back = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
    assert back.dtype == source.dtype
    assert back.tolist() == [0.0, 1.0, 2.0]


def test_what_is_not_contiguous_or_no_array_is_not_taken_by_dlpack() -> None:
    with pytest.raises(TritonModelException, match="not contiguous in C order"):
        BackendTensor.from_dlpack("x", np.ones((2, 3)).T)
    with pytest.raises(TritonModelException, match="a list is no DLPack capsule"):
        BackendTensor.from_dlpack("x", [1])
    with pytest.raises(TritonModelException, match="DLPack does not have support for string tensors"):
        BackendTensor("x", np.array([b"a"], np.object_)).to_dlpack()


def test_a_request_says_what_it_was_made_of() -> None:
    x = BackendTensor("x", np.zeros(1))
    request = InferenceRequest(
        request_id="7",
        correlation_id=4,
        inputs=[x],
        requested_output_names=["y"],
        model_name=b"other",
        model_version=2,
        flags=1,
        timeout=5,
        parameters={"a": True},
    )
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == ("7", 4, 1, 5)
    assert (request.model_name(), request.model_version(), request.parameters()) == ("other", 2, '{"a": true}')
    assert (request.inputs(), request.requested_output_names()) == ([x], ["y"])
    assert not request.is_cancelled()
    assert request.trace().get_context() is None
    with pytest.raises(TritonModelException, match="has no response sender"):
        request.get_response_sender()
    with pytest.raises(TritonModelException, match="does not reschedule requests"):
        request.set_release_flags(2)


@pytest.mark.parametrize("parameters", [{"a": 1.5}, {"a": None}, {1: "a"}])
def test_parameters_are_words_numbers_and_truth_values(parameters: dict[Any, Any]) -> None:
    with pytest.raises(TritonModelException, match="parameters are str by str, int or bool"):
        InferenceResponse(parameters=parameters)
    assert InferenceResponse(parameters={"a": 1}).parameters() == '{"a": 1}'
