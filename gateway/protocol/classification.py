"""The classification extension: an output as its highest elements, `value:index[:label]`. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.tensors.datatypes import pack_strings
from mmsup.ipc.tensors.numpy_arrays import Array, as_array

_NARROW: Final = frozenset({"FP16", "BF16"})


def top_classes(tensor: OutputTensor, count: int, labels: list[str], *, batched: bool) -> OutputTensor:
    """The `count` highest elements of each row (the whole tensor is one row, if the model does not batch)."""
    values = as_array(tensor.data, tensor.datatype, tensor.shape)
    if tensor.datatype in _NARROW:
        values = values.astype(np.float32)
    batch = tensor.shape[0] if batched and tensor.shape else 1
    rows = values.reshape(batch, values.size // batch if batch else 0)
    order = _descending(rows)[:, :count]
    values_by_row: list[list[float]] = rows.tolist()
    indices_by_row: list[list[int]] = order.tolist()
    strings = [
        _entry(row[index], index, labels)
        for row, indices in zip(values_by_row, indices_by_row, strict=True)
        for index in indices
    ]
    shape = (batch, order.shape[1]) if batched else (order.shape[1],)
    return OutputTensor(tensor.name, "BYTES", shape, memoryview(pack_strings(strings)))


def _descending(rows: Array) -> npt.NDArray[np.intp]:
    """Indices from the highest down, ties by the lower index, NaN last."""
    # ~x falls where x rises and, unlike -x, exists for every integer, signed or not.
    keys = -rows if rows.dtype.kind == "f" else ~rows
    return np.argsort(keys, axis=1, kind="stable")


def _entry(value: float, index: int, labels: list[str]) -> bytes:
    number = f"{value:f}" if isinstance(value, float) else str(value)
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{number}:{index}{label}".encode()
