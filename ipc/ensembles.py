"""Ensembles: models made of other models, which the gateway runs as steps. Pure.

A step runs as soon as all tensors that its `input_map` names are there: inputs of the ensemble, or outputs of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

ENSEMBLE: Final = "ensemble"
"""The engine of such a model, its platform and its backend in Triton's words. It has no worker."""


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One model of an ensemble. Both maps are from the model's own tensor to the ensemble's."""

    model: str
    version: str = ""
    """Empty: the default one."""
    input_map: dict[str, str] = field(default_factory=dict[str, str])
    output_map: dict[str, str] = field(default_factory=dict[str, str])


def startable(steps: Sequence[EnsembleStep], started: Iterable[int], known: Iterable[str]) -> list[int]:
    """The steps that can start now, by place, given those that have and the tensors that are there."""
    begun, there = set(started), set(known)
    return [at for at, step in enumerate(steps) if at not in begun and there.issuperset(step.input_map.values())]


def needed_steps(steps: Sequence[EnsembleStep], wanted: Iterable[str]) -> set[int]:
    """The steps without which these tensors are not made."""
    todo, needed = list(wanted), set[int]()
    makers = {tensor: at for at, step in enumerate(steps) for tensor in step.output_map.values()}
    while todo:
        at = makers.get(todo.pop())
        if at is not None and at not in needed:
            needed.add(at)
            todo += steps[at].input_map.values()
    return needed
