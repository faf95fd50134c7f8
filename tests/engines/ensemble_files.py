"""Ensembles for tests, as an operator would lay them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import config_name

X, Y = TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,))


def write_ensemble(
    repository: Path,
    name: str,
    *steps: tuple[str, Mapping[str, str], Mapping[str, str]],
    inputs: Sequence[TensorSpec] = (X,),
    outputs: Sequence[TensorSpec] = (Y,),
) -> None:
    """`steps`: model, input map, output map."""
    (repository / name / "1").mkdir(parents=True)
    lines = ['platform: "ensemble"']
    for key, tensors in (("input", inputs), ("output", outputs)):
        for each in tensors:
            dims = ", ".join(map(str, each.shape))
            lines.append(f'{key} [{{ name: "{each.name}" data_type: {config_name(each.datatype)} dims: [ {dims} ] }}]')
    lines.append("ensemble_scheduling {")
    for model, taken, made in steps:
        lines.append(f'  step {{ model_name: "{model}" model_version: -1')
        for key, tensors_map in (("input_map", taken), ("output_map", made)):
            lines += [f'    {key} {{ key: "{own}" value: "{tensor}" }}' for own, tensor in tensors_map.items()]
        lines.append("  }")
    (repository / name / "config.pbtxt").write_text("\n".join([*lines, "}", ""]))
