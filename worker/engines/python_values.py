"""What a Python class gets and gives beside arrays: strings, JSON values, plain numbers. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from mmsup.ipc.errors import CallerError, ModelError
from mmsup.ipc.tensors.numpy_arrays import Array

BYTES: Final = "bytes"
TEXT: Final = "text"
JSON: Final = "json"
_FORMS: Final = (TEXT, BYTES, JSON)
_KINDS: Final = {"i": "iuf", "u": "iuf", "f": "f"}
"""Kinds of numpy's dtypes, and those to which plain numbers of them are converted."""


def string_form(parameters: Mapping[str, str]) -> str:
    """How elements of BYTES reach the class; ModelError for a word that is no form."""
    word = parameters.get("strings", BYTES)
    if word not in _FORMS:
        raise ModelError("config_mismatch", "parameter 'strings' is neither text nor bytes nor json")
    return word


def converted_input(form: str, name: str, array: Array) -> Array:
    """An input as the class gets it; CallerError for an element that is not of this form."""
    if form == BYTES or array.dtype.kind != "O":
        return array
    return as_text(name, array) if form == TEXT else _converted(name, array, json.loads, "JSON")


def as_text(name: str, array: Array) -> Array:
    """The same array with `str` in it, from UTF-8."""
    return _converted(name, array, lambda each: str(each, "utf-8"), "UTF-8 text")


def _converted(name: str, array: Array, convert: Callable[[bytes], Any], what: str) -> Array:
    found = np.empty(array.shape, dtype=np.object_)
    flat = found.reshape(-1)
    try:
        for at, each in enumerate(array.reshape(-1)):
            flat[at] = convert(each)
    except (ValueError, RecursionError) as error:
        raise CallerError("bad_request", f"input '{name}' has an element that is no {what}") from error
    return found


def as_array(value: Any, declared: np.dtype[Any] | None, form: str) -> Array:  # whatever the model returned
    """An array of an output. Plain numbers become the declared datatype, if that is of their kind or a wider one and no
    integer changes; a list without elements, which tells no type, too. Arrays stay as they are."""
    if form == JSON and declared is not None and declared.kind == "O":
        return _as_json(value)
    array = np.asarray(value)
    if declared is None or isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        return array
    if not array.size:
        return array.astype(declared)
    if declared.kind not in _KINDS.get(array.dtype.kind, ""):
        return array
    made = array.astype(declared)
    return made if declared.kind == "f" or np.array_equal(made, array) else array


def _as_json(value: Any) -> Array:  # of the model: an array, a list, or one value
    """JSON of each element; bytes are JSON already."""
    if isinstance(value, np.ndarray):
        elements, shape = value.reshape(-1).tolist(), value.shape
    else:
        elements = list(value) if isinstance(value, list | tuple) else [value]
        shape = (len(elements),)
    found = np.empty(len(elements), dtype=np.object_)
    for at, each in enumerate(elements):
        found[at] = each if isinstance(each, bytes) else json.dumps(each)
    return found.reshape(shape)
