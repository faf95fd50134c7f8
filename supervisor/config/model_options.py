"""The options of a model: in its `mmsup.yaml`, and in `defaults:` and `models: NAME:` of the server's file.

Covers: names and valid values, merging of several layers. Does not cover: reading files (yaml_file.py); the precedence
of the layers (repository/scanner.py); options of the server (server_options.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from mmsup.ipc.messages.zygote_control import ENGINE_SETS
from mmsup.ipc.specs import PRIORITY_LEVELS, TensorSpec
from mmsup.supervisor.config import batching_options, sequence_options, units, validators
from mmsup.supervisor.config.config_error import ConfigError, InvalidValue, hidden_error, unknown_name
from mmsup.supervisor.config.yaml_file import ConfigSource, join_key

ModelOptions = dict[str, Any]  # JSON; each option has its own type

LOAD_RULES: Final = ("start", "on-demand")
SLEEP_RULES: Final = ("auto", "host-memory", "unload")
MIN_MEMORY_BYTES: Final = 16 << 20
"""No interpreter starts with less; `memory: 4` must be a mistake."""
MIN_GPU_MEMORY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelOption:
    """The field of ModelSpec that the option sets, and its validator."""

    field: str
    parse: validators.Parser[Any]  # each key has its own type


MODEL_OPTIONS: Final[dict[str, ModelOption]] = {
    "memory": ModelOption("memory_bytes", validators.size(MIN_MEMORY_BYTES)),
    "recycle_memory": ModelOption("recycle_memory_bytes", validators.size(MIN_MEMORY_BYTES)),
    "gpu_memory": ModelOption("gpu_memory_bytes", validators.size(MIN_GPU_MEMORY_BYTES)),
    "group": ModelOption("group", validators.model_name),
    "instances": ModelOption("instances", validators.integer(1, 256)),
    "device": ModelOption("device", validators.device),
    "python": ModelOption("python", validators.absolute_path),
    "start": ModelOption("start", validators.one_of(("zygote", "exec"))),
    "preload": ModelOption("preload", validators.one_of(ENGINE_SETS)),
    "env": ModelOption("env", validators.environment),
    "deadline": ModelOption("deadline_s", validators.duration),
    "hang_limit": ModelOption("hang_limit_s", validators.duration),
    "load_timeout": ModelOption("load_timeout_s", validators.duration),
    "max_queue": ModelOption("max_queue", validators.integer(1, 1_000_000)),
    "max_queue_bytes": ModelOption("max_queue_bytes", validators.size()),
    "batching": ModelOption("batching", batching_options.parse_batching),
    "priority": ModelOption("priority", validators.integer(0, PRIORITY_LEVELS)),
    "priority_levels": ModelOption("priority_levels", validators.integer(1, PRIORITY_LEVELS)),
    "queue_policies": ModelOption("queue_policies", batching_options.parse_queue_policies),
    "sequences": ModelOption("sequences", sequence_options.parse_sequences),
    "load": ModelOption("load", validators.one_of(LOAD_RULES)),
    "ttl": ModelOption("ttl_s", validators.duration_or_never),
    "pin": ModelOption("pin", validators.boolean),
    "evict": ModelOption("evict", validators.boolean),
    "sleep": ModelOption("sleep", validators.one_of(SLEEP_RULES)),
    "cold_start_timeout": ModelOption("cold_start_timeout_s", units.duration),
    "response_cache": ModelOption("response_cache", validators.boolean),
    "retry_on_crash": ModelOption("retry_on_crash", validators.boolean),
    "decoupled": ModelOption("decoupled", validators.boolean),
    "trusted": ModelOption("trusted", validators.boolean),
    "inputs": ModelOption("inputs", validators.tensors),
    "outputs": ModelOption("outputs", validators.tensors),
    "max_batch_size": ModelOption("max_batch_size", validators.integer(0, (1 << 31) - 1)),
    "parameters": ModelOption("parameters", validators.string_map),
    "strings": ModelOption("parameters", validators.one_of(("text", "bytes", "json"))),
}
MERGED_OPTIONS: Final = ("batching", "env", "parameters", "sequences")
"""Of these a layer with higher precedence replaces single entries, of all others the whole value."""


def parse_options(raw: object, source: ConfigSource, above: str = "") -> tuple[ModelOptions, tuple[ConfigError, ...]]:
    """The valid options of a mapping at the key `above` of `source`, and an error for each invalid one."""
    try:
        given = validators.mapping({} if raw is None else raw, "mapping of the keys of a model")
    except InvalidValue as error:
        return {}, tuple(ConfigError(source.place(above), text) for _, text in error.problems)
    found: ModelOptions = {}
    errors: list[ConfigError] = []
    for name, value in given.items():
        place = join_key(above, name)
        if name not in MODEL_OPTIONS:
            errors.append(ConfigError(source.place(place), unknown_name(name, MODEL_OPTIONS)))
            continue
        try:
            found[name] = MODEL_OPTIONS[name].parse(value)
        except InvalidValue as error:
            known = source.place(place)  # what is below may be any word
            errors += [hidden_error(source.place(join_key(place, key)), text, known) for key, text in error.problems]
    return found, tuple(errors)


def merge(*layers: Mapping[str, Any]) -> ModelOptions:  # options, the layer of lowest precedence first
    result: ModelOptions = {}
    for layer in layers:
        for name, value in layer.items():
            result[name] = {**result.get(name, {}), **value} if name in MERGED_OPTIONS else value
    return result


def cache_without_effect(options: ModelOptions) -> str:
    """Why `response_cache` keeps nothing, as the end of a sentence; empty if it does."""
    key = next((each for each in ("sequences", "decoupled") if options.get(each, False) is not False), "")
    is_asked = key and options.get("response_cache", False)
    return f"has no effect: answers of a model with `{key}` are not kept" if is_asked else ""


def sections_of(models: Mapping[str, Any], name: str) -> list[str]:  # options by name or pattern
    """The keys below `models:` that are about a model: patterns in their order, then its own name."""
    return [*(key for key in models if key != name and fnmatchcase(name, key)), *([name] if name in models else [])]


def spec_fields(keys: Mapping[str, Any]) -> dict[str, Any]:  # arguments of ModelSpec
    """The fields of ModelSpec that these options set. Missing options are left to the defaults of ModelSpec."""
    keys = _with_strings(keys)
    set_fields = {MODEL_OPTIONS[name].field: value for name, value in keys.items()}
    for name in ("inputs", "outputs"):
        if name in set_fields:
            set_fields[name] = tuple(_tensor_spec(each) for each in set_fields[name])
    if "batching" in set_fields:
        set_fields["batching"] = batching_options.batching_spec(set_fields["batching"])
    if "queue_policies" in set_fields:
        set_fields["queue_policies"] = batching_options.policy_specs(set_fields["queue_policies"])
    if "sequences" in set_fields:
        set_fields["sequences"] = sequence_options.sequences_spec(set_fields["sequences"])
    return set_fields


def _with_strings(keys: Mapping[str, Any]) -> Mapping[str, Any]:  # options
    """The option `strings` as a parameter of the model, where its worker looks for it."""
    if "strings" not in keys:
        return keys
    others = {name: value for name, value in keys.items() if name != "strings"}
    return {**others, "parameters": {**keys.get("parameters", {}), "strings": keys["strings"]}}


def _tensor_spec(tensor: Mapping[str, Any]) -> TensorSpec:  # JSON, checked
    return TensorSpec(tensor["name"], tensor["datatype"], tuple(tensor["shape"]), tensor["optional"])
