"""Is this value valid? One small function a kind: the raw value in, the typed value out, Wrong with words if not.

Values come from YAML (typed) and from flags and environment (text): both are read. Each result is JSON, and is valid
again. Who asks: config.py for options of the server, keys.py for keys of a model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

from mmsup.ipc.tensors.datatypes import ITEM_BYTES, RANK_LIMIT, from_config_name
from mmsup.supervisor.config import units
from mmsup.supervisor.config.config_error import InvalidValue, displayed, unknown_name

T = TypeVar("T")
Parser = Callable[[object], T]

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
"""Names of models; the only ones that may become part of a path."""
TENSOR_LIMIT: Final = 64
_DIGITS: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DEVICE: Final = re.compile(r"cpu|auto|cuda(?::[0-9]{1,3})?|(?:GPU|MIG)-[0-9A-Za-z/-]{4,80}", re.ASCII)


def mapping(raw: object, what: str) -> dict[str, object]:
    """A mapping with text keys, as both JSON and document.py make them; `what` should stand there."""
    if not isinstance(raw, dict):
        raise InvalidValue(f"{displayed(raw)} is no {what}")
    return cast("dict[str, object]", raw)


def sequence(raw: object, what: str) -> list[object]:
    """A list; `what` should stand there."""
    if not isinstance(raw, (list, tuple)):
        raise InvalidValue(f"{displayed(raw)} is no {what}")
    return list(cast("Sequence[object]", raw))


def integer(low: int, high: int) -> Parser[int]:
    """A whole number from `low` to `high`."""

    def valid(raw: object) -> int:
        number = int(raw) if isinstance(raw, str) and _DIGITS.fullmatch(raw.strip()) else raw
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidValue(f"{displayed(raw)} is not a whole number")
        if not low <= number <= high:
            raise InvalidValue(f"{displayed(raw)} is not between {low} and {high}")
        return number

    return valid


def size(low: int = 1) -> Parser[int]:
    """A size of at least `low` bytes."""

    def valid(raw: object) -> int:
        size_bytes = units.size(raw)
        if size_bytes < low:
            raise InvalidValue(f"{displayed(raw)} is less than the least that works, {units.size_text(low)}")
        return size_bytes

    return valid


def duration(raw: object) -> float:
    """A duration longer than nothing."""
    seconds = units.duration(raw)
    if seconds <= 0:
        raise InvalidValue(f"{displayed(raw)} is no time at all")
    return seconds


def boolean(raw: object) -> bool:
    """true or false, also as Triton's flags write them: 1, 0."""
    words = {"true": True, "1": True, "false": False, "0": False}
    word = str(raw).strip().lower() if isinstance(raw, (str, int)) else ""
    if word not in words:
        raise InvalidValue(f"{displayed(raw)} is neither true nor false")
    return words[word]


def text(raw: object) -> str:
    """Some words that may be a path or go into an environment: no NUL, no half of a surrogate pair."""
    if not isinstance(raw, str) or not raw or not _is_encodable(raw):
        raise InvalidValue(f"{displayed(raw)} is no text")
    return raw


def _is_encodable(raw: str) -> bool:
    try:
        return b"\0" not in os.fsencode(raw)
    except UnicodeEncodeError:
        return False


def one_of(words: Sequence[str]) -> Parser[str]:
    """One of these words."""

    def valid(raw: object) -> str:
        if raw not in words:
            raise InvalidValue(unknown_name(raw, words))
        return str(raw)

    return valid


def list_of(valid: Parser[T], separator: str) -> Parser[list[T]]:
    """Several values: a list, or one text with a separator (a flag given once, an environment variable)."""

    def valid_list(raw: object) -> list[T]:
        parts = [each for each in raw.split(separator) if each] if isinstance(raw, str) else raw
        return [valid(each) for each in sequence(parts, "list")]

    return valid_list


def model_name(raw: object) -> str:
    """The name of a model."""
    if not isinstance(raw, str) or not NAME.fullmatch(raw):
        raise InvalidValue(f"{displayed(raw)} is no name of a model (letters, digits, _ . -; at most 128)")
    return raw


def absolute_path(raw: object) -> str:
    """A path from the root."""
    if not text(raw).startswith("/"):
        raise InvalidValue(f"{displayed(raw)} is not an absolute path")
    return text(raw)


def device(raw: object) -> str:
    """`cpu`, `cuda`, `cuda:1`, the UUID of a GPU, or `auto`."""
    if not isinstance(raw, str) or not _DEVICE.fullmatch(raw):
        raise InvalidValue(f"{displayed(raw)} is no device; one is cpu, cuda, cuda:1, a GPU's UUID, or auto")
    return raw


def environment(raw: object) -> dict[str, str]:
    """Variables for a worker's environment."""
    found = string_map(raw)
    wrongs = [(name, f"{displayed(name)} is no name of a variable") for name in found if not _VARIABLE.fullmatch(name)]
    wrongs += [
        ("CUDA_VISIBLE_DEVICES", "is set by the server; say device") for _ in found.keys() & {"CUDA_VISIBLE_DEVICES"}
    ]
    if wrongs:
        raise InvalidValue(*wrongs)
    return found


def string_map(raw: object) -> dict[str, str]:
    """A mapping of words to texts; a number or a truth value is taken as it is written in JSON."""
    wrongs: list[tuple[str, str]] = []
    found: dict[str, str] = {}
    for key, value in mapping(raw, "mapping").items():
        word = value if isinstance(value, str) else displayed(value)
        if not isinstance(value, (str, int, float)) or not _is_encodable(key + word):
            wrongs.append((key, f"{displayed(value)} is no text"))
        else:
            found[key] = word
    if wrongs:
        raise InvalidValue(*wrongs)
    return found


# A tensor in JSON: {"name", "datatype", "shape", "optional"}, the fields of ipc.specs.TensorSpec.


def tensors(raw: object) -> list[dict[str, Any]]:  # JSON
    """Declared inputs or outputs."""
    given = sequence(raw, "list of tensors")
    if not 1 <= len(given) <= TENSOR_LIMIT:
        raise InvalidValue(f"{len(given)} tensors; a model has 1 to {TENSOR_LIMIT}")
    wrongs: list[str | tuple[str, str]] = []
    found: list[dict[str, Any]] = []  # JSON
    for at, each in enumerate(given):
        try:
            found.append(_tensor(each))
        except InvalidValue as wrong:
            wrongs += [(f"[{at}].{key}" if key else f"[{at}]", words) for key, words in wrong.problems]
    names = [each["name"] for each in found]
    wrongs += [
        f"two tensors are named {displayed(name)}" for name in sorted({each for each in names if names.count(each) > 1})
    ]
    if wrongs:
        raise InvalidValue(*wrongs)
    return found


def _tensor(raw: object) -> dict[str, Any]:  # JSON
    said = mapping(raw, "tensor, which has name, datatype and shape")
    wrongs = [(key, unknown_name(key, _TENSOR_KEYS)) for key in said if key not in _TENSOR_KEYS]
    if "dims" in said and "shape" in said:
        wrongs.append(("dims", "shape says the same; leave one out"))
    found: dict[str, Any] = {"optional": False}  # JSON
    for key, (field, valid) in _TENSOR_KEYS.items():
        if key in said:
            try:
                found[field] = valid(said[key])
            except InvalidValue as wrong:
                wrongs += [(key, words) for _, words in wrong.problems]
    given = {_TENSOR_KEYS[key][0] for key in said if key in _TENSOR_KEYS}
    wrongs += [(field, "is missing") for field in ("name", "datatype", "shape") if field not in given]
    if wrongs:
        raise InvalidValue(*wrongs)
    return found


def datatype(raw: object) -> str:
    """A datatype of the protocol (`FP32`), also as configurations write it (`TYPE_FP32`)."""
    word = (from_config_name(raw) or raw) if isinstance(raw, str) else ""
    if word not in ITEM_BYTES:
        raise InvalidValue(unknown_name(raw, ITEM_BYTES, "no datatype"))
    return word


def shape(raw: object) -> list[int]:
    """Sizes, -1 for any."""
    given = sequence(raw, "shape; one is [3, 224, 224], with -1 for any size")
    if len(given) > RANK_LIMIT:
        raise InvalidValue(f"a rank of {len(given)} is more than {RANK_LIMIT}")
    sizes: list[int] = []
    for each in given:
        if isinstance(each, bool) or not isinstance(each, int) or not (each == -1 or 0 < each < 1 << 31):
            raise InvalidValue(f"{displayed(each)} is no size of a dimension: a positive number, or -1 for any")
        sizes.append(each)
    return sizes


_TENSOR_KEYS: Final[dict[str, tuple[str, Parser[Any]]]] = {  # each key has its own type
    "name": ("name", text),
    "datatype": ("datatype", datatype),
    "data_type": ("datatype", datatype),
    "shape": ("shape", shape),
    "dims": ("shape", shape),
    "optional": ("optional", boolean),
}
