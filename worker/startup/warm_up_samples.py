"""The inputs of a sample of `model_warmup`: zeros, random values, or a file in the folder `warmup` of the model.

A file holds the tensor's bytes as they travel (row-major, little-endian; strings each behind a 4-byte length), of one
row, which every row of the batch then has, or of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

import numpy as np

from mmsup.ipc.specs import WARM_UP_FOLDER, WARM_UP_STRINGS_BYTES, Metadata, TensorSpec
from mmsup.ipc.tensors.datatypes import element_count, from_config_name, shape_matches, unpack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.execution.batch_arrays import Arrays

SEED: Final = 0
"""Random values are the same at each start: a sample that fails fails again."""

Json = Mapping[str, Any]  # a JSON object


def sample_inputs(sample: Json, metadata: Metadata, directory: str) -> Arrays:
    """The inputs of one run. `directory`: of the version. ValueError for a sample that this model cannot take, OSError
    for a file that cannot be read."""
    declared = {each.name: each for each in metadata.inputs}
    given: Mapping[str, Json] = sample.get("inputs", {})
    for name in given:
        if name not in declared:
            raise ValueError(f"the model has no input '{name}'")
    missing = [each.name for each in metadata.inputs if not each.optional and each.name not in given]
    if missing:
        raise ValueError(f"it has no input '{missing[0]}'")
    rows = max(sample.get("batch_size", 0), 1) if metadata.max_batch_size else 0
    folder = os.path.join(os.path.dirname(os.path.abspath(directory)), WARM_UP_FOLDER)
    return {name: _input(each, declared[name], rows, folder) for name, each in given.items()}


def _input(given: Json, declared: TensorSpec, rows: int, folder: str) -> Array:
    """`rows`: 0 for a model without a batch axis."""
    datatype, dims = from_config_name(given.get("data_type", "")), tuple(given.get("dims", ()))
    if datatype != declared.datatype:
        raise ValueError(f"input '{declared.name}' is {datatype} there, and {declared.datatype} in the model")
    if not shape_matches(declared.shape, dims):
        raise ValueError(f"input '{declared.name}' is {list(dims)} there, and {list(declared.shape)} in the model")
    batch = (rows,) if rows else ()
    if "input_data_file" in given:
        return _from_file(os.path.join(folder, given["input_data_file"]), declared, dims, batch)
    shape = (*batch, *dims)
    if "random_data" in given:
        return _random(declared.datatype, shape)
    if declared.datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=NUMPY[declared.datatype])


def _random(datatype: str, shape: tuple[int, ...]) -> Array:
    """Floats from 0 to 1, integers from 0 to 127, both truths, digits."""
    generator = np.random.default_rng(SEED)
    if datatype == "BYTES":
        made = np.empty(element_count(shape), dtype=np.object_)
        made[:] = [str(each).encode() for each in generator.integers(0, 128, made.size)]
        return made.reshape(shape)
    if datatype in ("FP16", "BF16", "FP32", "FP64"):
        return np.asarray(generator.random(shape)).astype(NUMPY[datatype])
    return np.asarray(generator.integers(0, 2 if datatype == "BOOL" else 128, shape)).astype(NUMPY[datatype])


def _from_file(path: str, declared: TensorSpec, dims: tuple[int, ...], batch: tuple[int, ...]) -> Array:
    name = f"{WARM_UP_FOLDER}/{os.path.basename(path)}"
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {name}")
    row, most = element_count(dims), element_count((*batch, *dims))
    if declared.datatype == "BYTES":
        strings = list(islice(unpack_strings(_read(path, name, WARM_UP_STRINGS_BYTES)), most + 1))
        if len(strings) > most:
            raise ValueError(f"{name} holds more than {most} elements, and input '{declared.name}' takes {row}")
        flat = np.empty(len(strings), dtype=np.object_)
        flat[:] = strings
    else:
        dtype = NUMPY[declared.datatype]
        data = _read(path, name, most * dtype.itemsize)
        if len(data) % dtype.itemsize:
            raise ValueError(f"{name} holds {len(data)} bytes, which are no whole number of {declared.datatype}")
        flat = np.frombuffer(data, dtype=dtype)
    if batch and flat.size == batch[0] * row:
        return flat.reshape((*batch, *dims))
    if flat.size != row:
        raise ValueError(f"{name} holds {flat.size} elements, and input '{declared.name}' takes {row}")
    return np.tile(flat, batch or (1,)).reshape((*batch, *dims))


def _read(path: str, name: str, limit_bytes: int) -> bytes:
    """The content of a file; ValueError, and nothing is read, if it is longer than `limit_bytes`."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise ValueError(f"{name} holds {size} bytes, and at most {limit_bytes} are read for this input")
        return file.read(size)
