"""Validators: each takes a raw value and returns a typed one, or raises InvalidValue.

Raw values come from YAML (typed) or from flags and environment variables (text); both are accepted. Results are JSON
values, which the same validator accepts again.
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
"""Names of models, which become part of paths."""
_PATTERN: Final = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9_.*?-]{0,127}", re.ASCII)
TENSOR_LIMIT: Final = 64
_DIGITS: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,252}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", re.ASCII)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_DEVICE: Final = re.compile(r"cpu|auto|cuda(?::[0-9]{1,3})?|(?:GPU|MIG)-[0-9A-Za-z/-]{4,80}", re.ASCII)


def mapping(raw: object, what: str) -> dict[str, object]:
    """A mapping with text keys; `what` names it in the error."""
    if not isinstance(raw, dict):
        raise InvalidValue(f"{displayed(raw)} is no {what}")
    return cast("dict[str, object]", raw)


def sequence(raw: object, what: str) -> list[object]:
    """A list; `what` names it in the error."""
    if not isinstance(raw, (list, tuple)):
        raise InvalidValue(f"{displayed(raw)} is no {what}")
    return list(cast("Sequence[object]", raw))


def integer(low: int, high: int) -> Parser[int]:
    def valid(raw: object) -> int:
        number = int(raw) if isinstance(raw, str) and _DIGITS.fullmatch(raw.strip()) else raw
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidValue(f"{displayed(raw)} is not a whole number")
        if not low <= number <= high:
            raise InvalidValue(f"{displayed(raw)} is not between {low} and {high}")
        return number

    return valid


def size(low: int = 1) -> Parser[int]:
    def valid(raw: object) -> int:
        size_bytes = units.size(raw)
        if size_bytes < low:
            raise InvalidValue(f"{displayed(raw)} is less than the minimum, {units.size_text(low)}")
        return size_bytes

    return valid


def duration(raw: object) -> float:
    seconds = units.duration(raw)
    if seconds <= 0:
        raise InvalidValue(f"{displayed(raw)} is not more than 0")
    return seconds


def duration_or_never(raw: object) -> float:
    """Seconds; 0 for `never`."""
    if raw == "never":
        return 0.0
    seconds = units.duration(raw)
    if seconds <= 0:
        raise InvalidValue(f"{displayed(raw)} is not more than 0; `never` is for ever")
    return seconds


def boolean(raw: object) -> bool:
    """true or false, also as 1 and 0, as in Triton's flags."""
    words = {"true": True, "1": True, "false": False, "0": False}
    word = str(raw).strip().lower() if isinstance(raw, (str, int)) else ""
    if word not in words:
        raise InvalidValue(f"{displayed(raw)} is neither true nor false")
    return words[word]


def text(raw: object) -> str:
    """Text that can be a path or an environment variable: no NUL, no lone surrogate."""
    if not isinstance(raw, str) or not raw or not _is_encodable(raw):
        raise InvalidValue(f"{displayed(raw)} is no text")
    return raw


def _is_encodable(raw: str) -> bool:
    try:
        return b"\0" not in os.fsencode(raw)
    except UnicodeEncodeError:
        return False


def one_of(words: Sequence[str]) -> Parser[str]:
    def valid(raw: object) -> str:
        if raw not in words:
            raise InvalidValue(unknown_name(raw, words))
        return str(raw)

    return valid


def list_of(valid: Parser[T], separator: str) -> Parser[list[T]]:
    """Several values: a list, or one text with a separator (from a flag or an environment variable)."""

    def valid_list(raw: object) -> list[T]:
        parts = [each for each in raw.split(separator) if each] if isinstance(raw, str) else raw
        return [valid(each) for each in sequence(parts, "list")]

    return valid_list


def model_pattern(raw: object) -> str:
    """A model's name, or a pattern of names with `*` and `?`."""
    if isinstance(raw, str) and _PATTERN.fullmatch(raw):
        return raw
    return model_name(raw)


def model_name(raw: object) -> str:
    if not isinstance(raw, str) or not NAME.fullmatch(raw):
        raise InvalidValue(f"{displayed(raw)} is no name of a model (letters, digits, _ . -; at most 128)")
    return raw


def host_name(raw: object) -> str:
    """The name or address of a host, without scheme and port; `*` is any."""
    if not isinstance(raw, str) or not (raw == "*" or _HOST.fullmatch(raw)):
        raise InvalidValue(f"{displayed(raw)} is no name of a host: give it without scheme and port; * is any")
    return raw


def file_name(raw: object) -> str:
    """The name of a file, without a path."""
    name = text(raw)
    if "/" in name or name in (".", "..") or len(name.encode()) > 255:
        raise InvalidValue(f"{displayed(name)} is not the name of a file: give it without a folder")
    return name


def absolute_path(raw: object) -> str:
    if not text(raw).startswith("/"):
        raise InvalidValue(f"{displayed(raw)} is not an absolute path")
    return text(raw)


def device(raw: object) -> str:
    """`cpu`, `cuda`, `cuda:1`, the UUID of a GPU, or `auto`."""
    if not isinstance(raw, str) or not _DEVICE.fullmatch(raw):
        raise InvalidValue(f"{displayed(raw)} is no device; one is cpu, cuda, cuda:1, a GPU's UUID, or auto")
    return raw


def environment(raw: object) -> dict[str, str]:
    found = string_map(raw)
    problems = [(name, f"{displayed(name)} is no variable name") for name in found if not _VARIABLE.fullmatch(name)]
    if "CUDA_VISIBLE_DEVICES" in found:
        problems.append(("CUDA_VISIBLE_DEVICES", "is set by the server; use device"))
    if problems:
        raise InvalidValue(*problems)
    return found


def string_map(raw: object) -> dict[str, str]:
    """A mapping of strings to strings; numbers and booleans become their JSON text."""
    problems: list[tuple[str, str]] = []
    found: dict[str, str] = {}
    for key, value in mapping(raw, "mapping").items():
        word = value if isinstance(value, str) else displayed(value)
        if not isinstance(value, (str, int, float)) or not _is_encodable(key + word):
            problems.append((key, f"{displayed(value)} is no text"))
        else:
            found[key] = word
    if problems:
        raise InvalidValue(*problems)
    return found


# A tensor in JSON: {"name", "datatype", "shape", "optional"}, the fields of ipc.specs.TensorSpec.


def tensors(raw: object) -> list[dict[str, Any]]:  # JSON
    given = sequence(raw, "list of tensors")
    if not 1 <= len(given) <= TENSOR_LIMIT:
        raise InvalidValue(f"{len(given)} tensors; a model has 1 to {TENSOR_LIMIT}")
    problems: list[str | tuple[str, str]] = []
    found: list[dict[str, Any]] = []  # JSON
    for at, each in enumerate(given):
        try:
            found.append(_tensor(each))
        except InvalidValue as error:
            problems += [(f"[{at}].{key}" if key else f"[{at}]", words) for key, words in error.problems]
    names = [each["name"] for each in found]
    problems += [f"two tensors are named {displayed(name)}" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise InvalidValue(*problems)
    return found


def _tensor(raw: object) -> dict[str, Any]:  # JSON
    given = mapping(raw, "tensor, which has name, datatype and shape")
    problems = [(key, unknown_name(key, _TENSOR_KEYS)) for key in given if key not in _TENSOR_KEYS]
    if "dims" in given and "shape" in given:
        problems.append(("dims", "shape means the same; leave one out"))
    found: dict[str, Any] = {"optional": False}  # JSON
    for key, (field, valid) in _TENSOR_KEYS.items():
        if key in given:
            try:
                found[field] = valid(given[key])
            except InvalidValue as error:
                problems += [(key, text) for _, text in error.problems]
    fields = {_TENSOR_KEYS[key][0] for key in given if key in _TENSOR_KEYS}
    problems += [(field, "is missing") for field in ("name", "datatype", "shape") if field not in fields]
    if problems:
        raise InvalidValue(*problems)
    return found


def datatype(raw: object) -> str:
    """A datatype of the protocol (`FP32`), also as in config.pbtxt (`TYPE_FP32`)."""
    word = (from_config_name(raw) or raw) if isinstance(raw, str) else ""
    if word not in ITEM_BYTES:
        raise InvalidValue(unknown_name(raw, ITEM_BYTES, "no datatype"))
    return word


def shape(raw: object) -> list[int]:
    """Dimensions, -1 for any size."""
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
