"""`pb_utils.ModelConfig`, which `auto_complete_config` completes, and the look-ups in a configuration.

A value that the configuration has already is never changed: a contradiction is a ValueError, and the load fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from mmsup.ipc.tensors.datatypes import from_config_name

Tensor = dict[str, Any]  # JSON
Document = dict[str, Any]  # ModelConfig as JSON
_SCHEDULERS: Final = ("sequence_batching", "ensemble_scheduling")
_REQUIRED: Final = ("name", "data_type", "dims")


class BackendModelConfig:
    def __init__(self, model_config: str) -> None:
        """`model_config`: text of JSON."""
        self._model_config: Document = json.loads(model_config)

    def as_dict(self) -> Document:
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        declared = self._model_config["max_batch_size"]
        if declared > max_batch_size:
            raise ValueError(
                f"auto_complete_config sets max_batch_size to {max_batch_size}, and the configuration has {declared}"
            )
        self._model_config["max_batch_size"] = int(max_batch_size)

    def set_dynamic_batching(self) -> None:
        for other in _SCHEDULERS:
            if other in self._model_config:
                raise ValueError(f"auto_complete_config sets dynamic_batching, and the configuration has {other}")
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, bool]) -> None:
        for name in transaction_policy_dict:
            if name != "decoupled":
                raise ValueError(f"model_transaction_policy has no '{name}', only 'decoupled'")
        policy = self._model_config.setdefault("model_transaction_policy", {})
        for name, value in transaction_policy_dict.items():
            if policy.get(name, value) != value:
                raise ValueError(
                    f"auto_complete_config sets {name} to {value}, and the configuration has {policy[name]}"
                )
            policy[name] = bool(value)

    def add_input(self, input: Tensor) -> None:  # noqa: A002 - its public name
        self._add("input", input, (*_REQUIRED, "optional"))

    def add_output(self, output: Tensor) -> None:
        self._add("output", output, _REQUIRED)

    def _add(self, kind: str, tensor: Tensor, properties: tuple[str, ...]) -> None:
        name = tensor.get("name", "")
        for each in _REQUIRED:
            if each not in tensor:
                raise ValueError(f"{kind} '{name}' of auto_complete_config lacks '{each}'")
        for each in tensor:
            if each not in properties:
                raise ValueError(f"{kind} '{name}' of auto_complete_config has '{each}', which is none of {properties}")
        if from_config_name(tensor["data_type"]) is None:
            raise ValueError(f"{kind} '{name}' of auto_complete_config: {tensor['data_type']!r} is no data_type")
        declared = tensor_by_name(self._model_config, kind, name)
        if declared is None:
            self._model_config[kind].append({**tensor, "dims": list(tensor["dims"])})
            return
        for each in properties[1:]:
            if each in tensor and each in declared and not _agree(declared[each], tensor[each]):
                raise ValueError(
                    f"{kind} '{name}' has {each} {declared[each]} in the configuration, "
                    f"and {tensor[each]} in auto_complete_config"
                )
        declared.update({each: tensor[each] for each in properties if each in tensor})


def _agree(declared: Any, completed: Any) -> bool:  # values of JSON
    is_open = declared in ("TYPE_INVALID", []) or declared is None
    return is_open or (list(declared) == list(completed) if isinstance(declared, list) else declared == completed)


def tensor_by_name(model_config: Document, kind: str, name: str) -> Tensor | None:
    """Of the inputs or the outputs of a configuration."""
    tensors: list[Tensor] = model_config.get(kind, [])
    return next((each for each in tensors if each["name"] == name), None)


def get_input_config_by_name(model_config: Document, name: str) -> Tensor | None:
    return tensor_by_name(model_config, "input", name)


def get_output_config_by_name(model_config: Document, name: str) -> Tensor | None:
    return tensor_by_name(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: Document) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))
