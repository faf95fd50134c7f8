"""Whether the steps of an ensemble fit the models that they name, as far as these say what they take and give. Pure.

A model whose tensors are in its file alone says nothing before it is loaded; what does not fit then fails its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mmsup.ipc.specs import EnsembleStep, ModelSpec, TensorSpec
from mmsup.supervisor.config.config_error import ConfigError, plain_error
from mmsup.supervisor.repository.ensembles.ensemble_config import KEY

DEPTH_LIMIT: Final = 8
"""Ensembles within ensembles."""
Specs = Mapping[str, Sequence[ModelSpec]]
"""Of models by name, ascending by version; those with an error have none."""


def step_faults(ensemble: ModelSpec, models: Specs) -> list[ConfigError]:
    """What is wrong with the steps of a version, beside these models."""
    found: list[ConfigError] = []
    known = {each.name: (each, ensemble.max_batch_size) for each in ensemble.inputs}
    steps = {at: _spec(step, models) for at, step in enumerate(ensemble.steps)}
    for at, spec in steps.items():
        if spec is not None:
            made = {each.name: each for each in spec.outputs}
            for own, tensor in ensemble.steps[at].output_map.items():
                if own in made:
                    known[tensor] = made[own], spec.max_batch_size
    for at, step in enumerate(ensemble.steps):
        place = f"{ensemble.name}/config.pbtxt: {KEY}.step[{at}]"
        found += [plain_error(place, f"model '{step.model}' {text}") for text in _faults(ensemble, step, models, known)]
    for each in ensemble.outputs:
        if text := _difference(known.get(each.name), each, ensemble.max_batch_size):
            found.append(plain_error(f"{ensemble.name}/config.pbtxt: output", f"'{each.name}' {text}"))
    return found


def _faults(
    ensemble: ModelSpec, step: EnsembleStep, models: Specs, known: Mapping[str, tuple[TensorSpec, int]]
) -> Iterator[str]:
    if step.model not in models:
        yield "is in no repository"
        return
    if step.version and models[step.model] and _spec(step, models) is None:
        yield f"has no version {step.version} that is served"
    circle = _way_back(ensemble.name, step.model, models)
    if circle:
        yield f"is an ensemble that needs this one: {' -> '.join((ensemble.name, *circle))}"
        return
    spec = _spec(step, models)
    if spec is None:
        return
    if spec.decoupled:
        yield "answers many times or not at all (decoupled), and a step answers once"
    if ensemble.max_batch_size > spec.max_batch_size:
        yield (
            f"takes at most {spec.max_batch_size} rows (max_batch_size), and the ensemble allows "
            f"{ensemble.max_batch_size}: lower that of the ensemble"
        )
    for word, declared, mapped in (("input", spec.inputs, step.input_map), ("output", spec.outputs, step.output_map)):
        names = {each.name: each for each in declared}
        for own, tensor in mapped.items() if names else ():
            if own not in names:
                yield f"has no {word} '{own}'; it has {', '.join(map(repr, names))}"
            elif word == "input" and (text := _difference(known.get(tensor), names[own], spec.max_batch_size)):
                yield f"gets '{tensor}' as its input '{own}', which {text}"
        missing = [repr(each.name) for each in declared if not each.optional and each.name not in mapped]
        if word == "input" and missing:
            yield f"needs {', '.join(missing)}, which its input_map does not name"


def _difference(source: tuple[TensorSpec, int] | None, taken: TensorSpec, taken_batch: int) -> str:
    """Why a tensor that is made so cannot be taken as `taken`; empty if it may, or nobody says how it is made. With
    each stands the `max_batch_size` of its model."""
    if source is None:
        return ""
    given, given_batch = source
    if given.datatype != taken.datatype:
        return f"is {given.datatype}, where {taken.datatype} is expected"
    made, wanted = _whole(given, given_batch), _whole(taken, taken_batch)
    fits = len(made) == len(wanted) and all(-1 in pair or pair[0] == pair[1] for pair in zip(made, wanted, strict=True))
    return "" if fits else f"has shape {list(made)}, where {list(wanted)} is expected"


def _whole(tensor: TensorSpec, max_batch_size: int) -> tuple[int, ...]:
    return (-1, *tensor.shape) if max_batch_size else tensor.shape


def _spec(step: EnsembleStep, models: Specs) -> ModelSpec | None:
    """The version that a step runs; None if it is not known."""
    specs = models.get(step.model, ())
    if not step.version:
        return specs[-1] if specs else None
    return next((each for each in specs if each.version == step.version), None)


def _way_back(ensemble: str, name: str, models: Specs, depth: int = 0) -> tuple[str, ...]:
    """The ensembles from `name` to the one that is called `ensemble`; empty if there is no way."""
    if name == ensemble:
        return (name,)
    for spec in models.get(name, ()) if depth < DEPTH_LIMIT else ():
        for step in spec.steps:
            if found := _way_back(ensemble, step.model, models, depth + 1):
                return (name, *found)
    return ()
