"""Tensors of a model that its clients neither send nor get: what the server fills in for sequences. Pure."""

from __future__ import annotations

from dataclasses import replace

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec

CONTROL_SHAPE = (1,)


def with_hidden_tensors(spec: ModelSpec) -> ModelSpec:
    """The spec as the engine gets it: where it declares tensors, it declares all of the model."""
    sequences = spec.sequences
    if sequences is None:
        return spec
    inputs = [TensorSpec(each.input, each.datatype, CONTROL_SHAPE) for each in sequences.controls]
    inputs += [TensorSpec(each.input, each.datatype, each.shape) for each in sequences.states]
    outputs = [TensorSpec(each.output, each.datatype, each.shape) for each in sequences.states]
    return replace(
        spec,
        inputs=(*spec.inputs, *inputs) if spec.inputs else (),
        outputs=(*spec.outputs, *outputs) if spec.outputs else (),
    )


def check_hidden_tensors(spec: ModelSpec, metadata: Metadata) -> None:
    """ModelError if the model lacks a tensor that `sequence_batching` names."""
    if spec.sequences is None:
        return
    for kind, names, present in (
        ("input", spec.sequences.hidden_inputs(), metadata.inputs),
        ("output", spec.sequences.hidden_outputs(), metadata.outputs),
    ):
        missing = names - {each.name for each in present}
        if missing:
            text = f"model '{spec.name}': sequence_batching names {kind} '{min(missing)}', which the model has not"
            raise ModelError("config_mismatch", text)


def public_metadata(spec: ModelSpec, metadata: Metadata) -> Metadata:
    """The metadata as clients see it."""
    if spec.sequences is None:
        return metadata
    inputs, outputs = spec.sequences.hidden_inputs(), spec.sequences.hidden_outputs()
    return replace(
        metadata,
        inputs=tuple(each for each in metadata.inputs if each.name not in inputs),
        outputs=tuple(each for each in metadata.outputs if each.name not in outputs),
    )
