"""Merges the tensors that a model's configuration declares with those that its artifact declares. Pure.

The configuration takes precedence, the artifact completes it, and a contradiction fails the load with both shapes
named. Shapes of an artifact include the batch axis; those of a spec leave it out if the model batches.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import shape_matches


def merge_metadata(spec: ModelSpec, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Metadata:
    """The metadata of a model whose artifact declares these tensors."""
    merged_inputs = _merge_tensors(spec, "input", spec.inputs, inputs)
    merged_outputs = _merge_tensors(spec, "output", spec.outputs, outputs)
    missing = {each.name for each in inputs if not each.optional} - {each.name for each in merged_inputs}
    if missing:
        raise _load_error(
            spec, f"its configuration leaves out {_quoted_names('input', sorted(missing))}, which the file demands"
        )
    return Metadata(spec.platform, spec.max_batch_size, merged_inputs, merged_outputs)


def configured_metadata(spec: ModelSpec, artefact: str, arguments: Sequence[str] = ()) -> Metadata:
    """The metadata of a model whose artifact declares no tensors, but maybe the names of its arguments.

    Either all inputs have names of arguments, or they go by position: with a wrong name among right ones, tensors would
    change places.
    """
    if not spec.inputs or not spec.outputs:
        takes = f", which are {_quoted_names('input', arguments)}," if arguments else ""
        raise _load_error(
            spec,
            f"{artefact} does not tell datatypes and shapes: declare its inputs{takes} and outputs in config.pbtxt or "
            "mmsup.yaml",
        )
    strange = [each.name for each in spec.inputs if each.name not in arguments]
    if arguments and strange and len(strange) < len(spec.inputs):
        raise _load_error(
            spec,
            f"its configuration names {_quoted_names('input', strange)}, but {artefact} takes "
            f"{_quoted_names('input', arguments)}",
        )
    return Metadata(spec.platform, spec.max_batch_size, spec.inputs, spec.outputs)


def _merge_tensors(
    spec: ModelSpec, kind: str, configured: Sequence[TensorSpec], present: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    if not configured:
        return tuple(_without_batch(spec, kind, each) for each in present)
    by_name = {each.name: each for each in present}
    for each in configured:
        if each.name not in by_name:
            has = _quoted_names(kind, list(by_name)) if by_name else f"no {kind}"
            raise _load_error(spec, f"its configuration names {kind} '{each.name}', but the file has {has}")
        _check(spec, kind, each, by_name[each.name])
    return tuple(configured)


def _without_batch(spec: ModelSpec, kind: str, tensor: TensorSpec) -> TensorSpec:
    if not spec.max_batch_size:
        return tensor
    if not tensor.shape or tensor.shape[0] != -1:
        raise _load_error(
            spec,
            f"max_batch_size is {spec.max_batch_size}, but {kind} '{tensor.name}' of shape {list(tensor.shape)} "
            "has no variable first dimension to batch along; set max_batch_size to 0",
        )
    return TensorSpec(tensor.name, tensor.datatype, tensor.shape[1:], tensor.optional)


def _check(spec: ModelSpec, kind: str, configured: TensorSpec, present: TensorSpec) -> None:
    if configured.datatype != present.datatype:
        raise _load_error(
            spec,
            f"{kind} '{configured.name}' is {configured.datatype} in its configuration, {present.datatype} in the file",
        )
    if configured.optional and not present.optional:
        raise _load_error(
            spec, f"{kind} '{configured.name}' is optional in its configuration, but the file has no default for it"
        )
    whole = (-1, *configured.shape) if spec.max_batch_size else configured.shape
    # An artifact that leaves the rank open shows it as (): then the configuration counts.
    if present.shape and not shape_matches(present.shape, whole):
        batch = " with the batch axis" if spec.max_batch_size else ""
        raise _load_error(
            spec,
            f"{kind} '{configured.name}' is {list(whole)}{batch} in its configuration, "
            f"{list(present.shape)} in the file",
        )


def _quoted_names(kind: str, names: Sequence[str]) -> str:
    return f"{kind}{'s' if len(names) > 1 else ''} " + ", ".join(f"'{each}'" for each in names)


def _load_error(spec: ModelSpec, text: str) -> ModelError:
    return ModelError("config_mismatch", f"model '{spec.name}': {text}")
