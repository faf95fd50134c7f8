"""The extensions of the protocol that this server has: clients check them before use. Pure.

Each feature has its line here, with the condition under which it is there, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mmsup.ipc.messages.gateway_control import ConfigureGateway

Condition = Callable[[ConfigureGateway], bool]


def _always(_: ConfigureGateway) -> bool:
    return True


def _shares_memory(configuration: ConfigureGateway) -> bool:
    return configuration.client_memory != "none"


_EXTENSIONS: Final[dict[str, Condition]] = {
    "classification": _always,
    "sequence": _always,
    "sequence(string_id)": _always,
    "model_repository": _always,
    "schedule_policy": _always,
    "model_configuration": _always,
    "system_shared_memory": _shares_memory,
    "cuda_shared_memory": _shares_memory,
    "binary_tensor_data": _always,
    "parameters": _always,
    "statistics": _always,
    "logging": _always,
}


def extensions(configuration: ConfigureGateway) -> list[str]:
    """Their names, in the order of the protocol's own list."""
    return [name for name, is_there in _EXTENSIONS.items() if is_there(configuration)]
