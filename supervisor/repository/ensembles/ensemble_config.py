"""`ensemble_scheduling` of config.pbtxt: its steps, and what is wrong with how their tensors are connected. Pure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from mmsup.ipc.specs import ENSEMBLE, EnsembleStep, ModelSpec, startable
from mmsup.supervisor.config.config_error import ConfigError, plain_error

KEY: Final = "ensemble_scheduling"
LATEST: Final = -1
STEP_LIMIT: Final = 64


def ensemble_specs(
    name: str,
    directory: str,
    versions: Iterable[str],
    config: dict[str, Any],  # ModelConfig as JSON
    fields: dict[str, Any],  # of ModelSpec
) -> tuple[tuple[ModelSpec, ...], list[ConfigError]]:
    """The specs of these versions of an ensemble, or what is wrong with it."""
    steps, problems = _steps(config.get(KEY, {}).get("step", []))
    inputs, outputs = ([each.name for each in fields.get(key, ())] for key in ("inputs", "outputs"))
    problems += [(key, "is missing") for key, each in (("input", inputs), ("output", outputs)) if not each]
    if not problems:
        problems = list(_unconnected(steps, inputs, outputs, name))
    if problems:
        return (), [plain_error(f"{name}/config.pbtxt: {key}", text) for key, text in problems]
    own = fields | {"instances": 0, "device": "cpu", "group": "", "steps": steps, "config": config}
    own["response_cache"] = False  # its steps have one, which knows of their workers
    specs = [
        ModelSpec(name, each, os.path.join(directory, each), "", ENSEMBLE, platform=ENSEMBLE, **own)
        for each in versions
    ]
    return tuple(specs), []


def _steps(given: Sequence[dict[str, Any]]) -> tuple[tuple[EnsembleStep, ...], list[tuple[str, str]]]:  # JSON
    """The steps, and what is wrong with each by itself."""
    problems: list[tuple[str, str]] = []
    if not 0 < len(given) <= STEP_LIMIT:
        problems.append((f"{KEY}.step", f"has {len(given)} entries: an ensemble has 1 to {STEP_LIMIT} steps"))
    steps: list[EnsembleStep] = []
    for at, each in enumerate(given):
        place, version = f"{KEY}.step[{at}]", int(each.get("model_version", LATEST))
        inputs, outputs = each.get("input_map", {}), each.get("output_map", {})
        if not each.get("model_name"):
            problems.append((f"{place}.model_name", "is missing"))
        if version != LATEST and version < 1:
            problems.append((f"{place}.model_version", f"{version} is no version, and not -1 for the newest"))
        if each.get("model_namespace"):
            problems.append((f"{place}.model_namespace", "is not known here: leave it out"))
        for key, mapped in (("input_map", inputs), ("output_map", outputs)):
            if not mapped:
                problems.append((f"{place}.{key}", "is missing: it names the tensors of the step and of the ensemble"))
        shown = "" if version == LATEST else str(version)
        steps.append(EnsembleStep(str(each.get("model_name", "")), shown, dict(inputs), dict(outputs)))
    return tuple(steps), problems


def _unconnected(
    steps: Sequence[EnsembleStep], inputs: Sequence[str], outputs: Sequence[str], name: str
) -> Iterator[tuple[str, str]]:
    """What is wrong with the tensors that go from step to step."""
    made = Counter([*inputs, *(tensor for step in steps for tensor in step.output_map.values())])
    for at, step in enumerate(steps):
        if step.model == name:
            yield f"{KEY}.step[{at}].model_name", "names the ensemble itself"
        for tensor in step.input_map.values():
            if tensor not in made:
                text = f"takes '{tensor}', which is no input of the ensemble and no output of a step"
                yield f"{KEY}.step[{at}].input_map", f"model '{step.model}' {text}"
    for tensor in [each for each, count in made.items() if count > 1]:
        yield f"{KEY}.step", f"tensor '{tensor}' is made more than once: each has one step, or comes with the request"
    for tensor in outputs:
        if tensor not in made:
            yield "output", f"'{tensor}' is made by no step: name it in an output_map"
    taken = {tensor for step in steps for tensor in step.input_map.values()}
    for tensor in inputs:
        if tensor not in taken:
            yield "input", f"'{tensor}' is taken by no step: name it in an input_map"
    if made.keys() >= taken and (stuck := _in_a_circle(steps, inputs)):
        text = "wait for each other's outputs in a circle, so none of them can start"
        yield f"{KEY}.step", f"the steps {', '.join(repr(steps[at].model) for at in stuck)} {text}"


def _in_a_circle(steps: Sequence[EnsembleStep], inputs: Iterable[str]) -> list[int]:
    """The steps that can never start."""
    started, known = list[int](), set(inputs)
    while found := startable(steps, started, known):
        started += found
        known |= {tensor for at in found for tensor in steps[at].output_map.values()}
    return [at for at in range(len(steps)) if at not in started]
