"""The states with which sequences begin: zeros, empty strings, or the content of a file."""

from __future__ import annotations

import os
from typing import Final

import numpy as np

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import INITIAL_STATE_FOLDER, ModelSpec, SequenceState
from mmsup.ipc.tensors.datatypes import element_count, size_bytes, unpack_strings
from mmsup.ipc.tensors.numpy_arrays import NUMPY, Array
from mmsup.worker.execution.batch_arrays import Arrays

STRINGS_LIMIT_BYTES: Final = 64 << 20
"""The longest file of strings that is read."""


def initial_states(spec: ModelSpec) -> Arrays:
    """By input, with a batch axis of 1 where the model has one. ModelError for a file that does not fit."""
    states = spec.sequences.states if spec.sequences is not None else ()
    return {each.input: _initial_state(spec, each) for each in states}


def _initial_state(spec: ModelSpec, state: SequenceState) -> Array:
    shape = state.initial_shape or tuple([1 if size == -1 else size for size in state.shape])
    whole = (1, *shape) if spec.max_batch_size else shape
    if state.initial_file:
        return _from_file(spec, state, shape).reshape(whole)
    if state.datatype == "BYTES":
        return np.full(whole, b"", dtype=np.object_)
    return np.zeros(whole, dtype=NUMPY[state.datatype])


def _from_file(spec: ModelSpec, state: SequenceState, shape: tuple[int, ...]) -> Array:
    folder = os.path.join(os.path.dirname(os.path.abspath(spec.directory)), INITIAL_STATE_FOLDER)
    what = f"model '{spec.name}': initial state of '{state.input}': {INITIAL_STATE_FOLDER}/{state.initial_file}"
    try:
        with open(os.path.join(folder, state.initial_file), "rb") as file:
            size = size_bytes(state.datatype, shape)
            wanted = STRINGS_LIMIT_BYTES if size is None else size
            data = file.read(wanted + 1)
    except OSError as error:
        raise ModelError("config_mismatch", f"{what} cannot be read: {error.strerror}") from None
    if state.datatype == "BYTES":
        try:
            strings = list(unpack_strings(data))
        except ValueError as error:
            raise ModelError("config_mismatch", f"{what}: {error}") from None
        if len(strings) != element_count(shape):
            raise ModelError("config_mismatch", f"{what} holds {len(strings)} strings, {list(shape)} are needed")
        made = np.empty(len(strings), dtype=np.object_)
        made[:] = strings
        return made
    if len(data) != wanted:
        raise ModelError("config_mismatch", f"{what} holds {len(data)} bytes or more, {wanted} are needed")
    return np.frombuffer(data, dtype=NUMPY[state.datatype])
