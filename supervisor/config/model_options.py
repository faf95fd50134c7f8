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
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, unknown_name
from mmsup.supervisor.config.yaml_file import ConfigSource, join_key

ModelOptions = dict[str, Any]  # each key has its own type; all of them JSON

MIN_MEMORY_BYTES: Final = 16 << 20
"""Below it no interpreter starts; `memory: 4` was meant as something else."""
MIN_GPU_MEMORY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelOption:
    """One key: the field of ModelSpec it sets (empty: none in this version), and what is valid there."""

    field: str
    parse: valid.Parser[Any]  # each key has its own type


MODEL_OPTIONS: Final[dict[str, ModelOption]] = {
    "memory": ModelOption("memory_bytes", valid.size(MIN_MEMORY_BYTES)),
    "recycle_memory": ModelOption("recycle_memory_bytes", valid.size(MIN_MEMORY_BYTES)),
    "gpu_memory": ModelOption("gpu_memory_bytes", valid.size(MIN_GPU_MEMORY_BYTES)),
    "instances": ModelOption("instances", valid.integer(1, 256)),
    "device": ModelOption("device", valid.device),
    "python": ModelOption("python", valid.absolute_path),
    "env": ModelOption("env", valid.environment),
    "deadline": ModelOption("deadline_s", valid.duration),
    "hang_limit": ModelOption("hang_limit_s", valid.duration),
    "load_timeout": ModelOption("load_timeout_s", valid.duration),
    "max_queue": ModelOption("max_queue", valid.integer(1, 1_000_000)),
    "max_queue_bytes": ModelOption("max_queue_bytes", valid.size()),
    "batching": ModelOption("batching", batching_options.parse_batching),
    "priority": ModelOption("priority", valid.integer(0, PRIORITY_LEVELS)),
    "priority_levels": ModelOption("priority_levels", valid.integer(1, PRIORITY_LEVELS)),
    "queue_policies": ModelOption("queue_policies", batching_options.parse_queue_policies),
    "ttl": ModelOption("", valid.duration),
    "pin": ModelOption("", valid.boolean),
    "retry_on_crash": ModelOption("retry_on_crash", valid.boolean),
    "trusted": ModelOption("trusted", valid.boolean),
    "inputs": ModelOption("inputs", valid.tensors),
    "outputs": ModelOption("outputs", valid.tensors),
    "max_batch_size": ModelOption("max_batch_size", valid.integer(0, (1 << 31) - 1)),
    "parameters": ModelOption("parameters", valid.string_map),
}
MERGED_OPTIONS: Final = ("batching", "env", "parameters")
"""Of these the nearer layer replaces single entries; of all others the whole value."""


def parse_options(raw: object, source: ConfigSource, above: str = "") -> tuple[ModelOptions, tuple[ConfigError, ...]]:
    """The valid keys of a mapping that stands in `source` under the key `above`, and a fault for each other."""
    try:
        given = valid.mapping({} if raw is None else raw, "mapping of the keys of a model")
    except InvalidValue as wrong:
        return {}, tuple(ConfigError(source.place(above), text) for _, text in wrong.problems)
    found: ModelOptions = {}
    faults: list[ConfigError] = []
    for word, value in given.items():
        place = join_key(above, word)
        if word not in MODEL_OPTIONS:
            faults.append(ConfigError(source.place(place), unknown_name(word, MODEL_OPTIONS)))
            continue
        try:
            found[word] = MODEL_OPTIONS[word].parse(value)
        except InvalidValue as wrong:
            faults += [ConfigError(source.place(join_key(place, key)), text) for key, text in wrong.problems]
    return found, tuple(faults)


def merge(*layers: Mapping[str, Any]) -> ModelOptions:  # keys of a model, the farthest layer first
    """One layer of keys out of several, in which the nearer wins."""
    result: ModelOptions = {}
    for layer in layers:
        for word, value in layer.items():
            result[word] = {**result.get(word, {}), **value} if word in MERGED_OPTIONS else value
    return result


def spec_fields(keys: Mapping[str, Any]) -> dict[str, Any]:  # arguments of ModelSpec
    """The fields of ModelSpec that these keys set. What is not said is not there: the defaults are ModelSpec's."""
    set_fields = {MODEL_OPTIONS[word].field: value for word, value in keys.items() if MODEL_OPTIONS[word].field}
    for name in ("inputs", "outputs"):
        if name in set_fields:
            set_fields[name] = tuple(_tensor_spec(each) for each in set_fields[name])
    if "batching" in set_fields:
        set_fields["batching"] = batching_options.batching_spec(set_fields["batching"])
    if "queue_policies" in set_fields:
        set_fields["queue_policies"] = batching_options.policy_specs(set_fields["queue_policies"])
    return set_fields


def unsupported(keys: Mapping[str, Any]) -> list[str]:
    """The keys that this version reads, checks and does not use."""
    return [word for word in keys if not MODEL_OPTIONS[word].field]


def _tensor_spec(tensor: Mapping[str, Any]) -> TensorSpec:  # JSON, checked
    return TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), tensor["optional"])
