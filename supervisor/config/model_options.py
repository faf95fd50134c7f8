"""The keys of one model: what `mmsup.yaml`, `defaults:` and `models: NAME:` of the server's file may say.

Covers: which keys there are, whether a value is valid, how two layers of keys become one.
Does not cover: reading files (document.py); who is nearer (repository.py); the keys of the server (config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmsup.ipc.specs import PRIORITY_LEVELS, TensorSpec
from mmsup.supervisor.config import batching_options
from mmsup.supervisor.config import validators as valid
from mmsup.supervisor.config.config_error import Fault, Wrong, unknown
from mmsup.supervisor.config.yaml_file import Source, below

Keys = dict[str, Any]  # each key has its own type; all of them JSON

LEAST_MEMORY_BYTES: Final = 16 << 20
"""Below it no interpreter starts; `memory: 4` was meant as something else."""
LEAST_GPU_MEMORY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Key:
    """One key: the field of ModelSpec it sets (empty: none in this version), and what is valid there."""

    field: str
    valid: valid.Valid[Any]  # each key has its own type


KEYS: Final[dict[str, Key]] = {
    "memory": Key("memory_bytes", valid.size(LEAST_MEMORY_BYTES)),
    "recycle_memory": Key("recycle_memory_bytes", valid.size(LEAST_MEMORY_BYTES)),
    "gpu_memory": Key("gpu_memory_bytes", valid.size(LEAST_GPU_MEMORY_BYTES)),
    "instances": Key("instances", valid.integer(1, 256)),
    "device": Key("device", valid.device),
    "python": Key("python", valid.absolute_path),
    "env": Key("env", valid.environment),
    "deadline": Key("deadline_s", valid.duration),
    "hang_limit": Key("hang_limit_s", valid.duration),
    "load_timeout": Key("load_timeout_s", valid.duration),
    "max_queue": Key("max_queue", valid.integer(1, 1_000_000)),
    "max_queue_bytes": Key("max_queue_bytes", valid.size()),
    "batching": Key("batching", batching_options.batching),
    "priority": Key("priority", valid.integer(0, PRIORITY_LEVELS)),
    "priority_levels": Key("priority_levels", valid.integer(1, PRIORITY_LEVELS)),
    "queue_policies": Key("queue_policies", batching_options.policies),
    "ttl": Key("", valid.duration),
    "pin": Key("", valid.boolean),
    "retry_on_crash": Key("retry_on_crash", valid.boolean),
    "trusted": Key("trusted", valid.boolean),
    "inputs": Key("inputs", valid.tensors),
    "outputs": Key("outputs", valid.tensors),
    "max_batch_size": Key("max_batch_size", valid.integer(0, (1 << 31) - 1)),
    "parameters": Key("parameters", valid.texts),
}
MERGED: Final = ("batching", "env", "parameters")
"""Of these the nearer layer replaces single entries; of all others the whole value."""


def checked(raw: object, source: Source, above: str = "") -> tuple[Keys, tuple[Fault, ...]]:
    """The valid keys of a mapping that stands in `source` under the key `above`, and a fault for each other."""
    try:
        given = valid.mapping({} if raw is None else raw, "mapping of the keys of a model")
    except Wrong as wrong:
        return {}, tuple(Fault(source.place(above), text) for _, text in wrong.wrongs)
    found: Keys = {}
    faults: list[Fault] = []
    for word, value in given.items():
        place = below(above, word)
        if word not in KEYS:
            faults.append(Fault(source.place(place), unknown(word, KEYS)))
            continue
        try:
            found[word] = KEYS[word].valid(value)
        except Wrong as wrong:
            faults += [Fault(source.place(below(place, key)), text) for key, text in wrong.wrongs]
    return found, tuple(faults)


def merged(*layers: Mapping[str, Any]) -> Keys:  # keys of a model, the farthest layer first
    """One layer of keys out of several, in which the nearer wins."""
    result: Keys = {}
    for layer in layers:
        for word, value in layer.items():
            result[word] = {**result.get(word, {}), **value} if word in MERGED else value
    return result


def fields(keys: Mapping[str, Any]) -> dict[str, Any]:  # arguments of ModelSpec
    """The fields of ModelSpec that these keys set. What is not said is not there: the defaults are ModelSpec's."""
    set_fields = {KEYS[word].field: value for word, value in keys.items() if KEYS[word].field}
    for name in ("inputs", "outputs"):
        if name in set_fields:
            set_fields[name] = tuple(_tensor_spec(each) for each in set_fields[name])
    if "batching" in set_fields:
        set_fields["batching"] = batching_options.batching_spec(set_fields["batching"])
    if "queue_policies" in set_fields:
        set_fields["queue_policies"] = batching_options.policy_specs(set_fields["queue_policies"])
    return set_fields


def without_effect(keys: Mapping[str, Any]) -> list[str]:
    """The keys that this version reads, checks and does not use."""
    return [word for word in keys if not KEYS[word].field]


def _tensor_spec(tensor: Mapping[str, Any]) -> TensorSpec:  # JSON, checked
    return TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), tensor["optional"])
