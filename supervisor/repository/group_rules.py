"""Which models can be in one co-location group: they share a process, so whatever is the process's must be the same."""

from __future__ import annotations

from collections.abc import Iterable

from mmsup.ipc.specs import GROUP_KEYS, ModelSpec
from mmsup.supervisor.config.config_error import ConfigError, plain_error


def contradiction(specs: Iterable[ModelSpec], others: Iterable[ModelSpec]) -> ConfigError | None:
    """Why a model with these versions cannot be beside the others of its group; None if it can, or is in none."""
    others = list(others)
    for spec in specs:
        beside = [each for each in others if spec.group and each.group == spec.group and each.name != spec.name]
        for other in beside:
            for key, field in GROUP_KEYS.items():
                if getattr(spec, field) != getattr(other, field):
                    text = (
                        f"differs from that of model '{other.name}', which is in the same group: models of a group "
                        f"share one process, so `{key}` must be the same for all of them"
                    )
                    return plain_error(f"{spec.name}: {key}", text)
    return None
