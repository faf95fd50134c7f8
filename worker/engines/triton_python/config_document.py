"""The model's configuration as JSON, as a model of Triton's Python backend gets it, and back again. Pure.

Source: model_config.proto of Triton; keys that Triton fills in with defaults are there, since models read them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

from mmsup.ipc.errors import ModelError
from mmsup.ipc.specs import Metadata, ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import config_name, from_config_name
from mmsup.worker.engines.triton_python.api.model_config import Document, Tensor

OPERATOR_PREFIX: Final = "mmsup_"
"""Parameters of the file that are options of the worker."""


def config_document(spec: ModelSpec) -> Document:
    """The configuration of a model: what its files say, and what is in force."""
    file = dict(spec.config)
    parameters = {
        key: value for key, value in file.get("parameters", {}).items() if not key.startswith(OPERATOR_PREFIX)
    }
    parameters |= {key: {"string_value": value} for key, value in spec.parameters.items()}
    defaults: Document = {
        "platform": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "default_model_filename": spec.artefact,
        "instance_group": [_instance_group(spec)],
        "optimization": {},
    }
    in_force: Document = {
        "name": spec.name,
        "backend": "python",
        "max_batch_size": spec.max_batch_size,
        "input": _tensors(file.get("input", []), spec.inputs),
        "output": _tensors(file.get("output", []), spec.outputs),
        "parameters": parameters,
    }
    if spec.decoupled:
        in_force["model_transaction_policy"] = {"decoupled": True}
    return {**defaults, **file, **in_force}


def arguments(spec: ModelSpec, document_text: str) -> dict[str, str]:
    """What `initialize` gets."""
    return {
        "model_config": document_text,
        "model_instance_kind": "CPU" if spec.device == "cpu" else "GPU",
        "model_instance_name": f"{spec.name}_0",
        "model_instance_device_id": "0",  # a worker sees its own device alone
        "model_repository": os.path.dirname(spec.directory),
        "model_version": spec.version,
        "model_name": spec.name,
    }


def completed_spec(spec: ModelSpec, document: Document) -> ModelSpec:
    """The spec with what `auto_complete_config` has added. Requests run one by one unless the configuration asks for
    dynamic batching, as in Triton: a model may rely on it."""
    inputs, outputs = document.get("input", []), document.get("output", [])
    own = spec.batching.max_rows or spec.batching.delay_s or spec.batching.preferred
    batches = own or "dynamic_batching" in document or "sequence_batching" in document
    return replace(
        spec,
        max_batch_size=int(document.get("max_batch_size", 0)),
        inputs=tuple([_tensor_spec(spec, "input", each) for each in inputs]),
        outputs=tuple([_tensor_spec(spec, "output", each) for each in outputs]),
        batching=spec.batching if batches else replace(spec.batching, max_rows=1),
    )


def completed_metadata(spec: ModelSpec) -> Metadata:
    """Of a completed spec; ModelError if its tensors are not all declared."""
    for kind, tensors in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        if not tensors:
            raise ModelError(
                "config_mismatch",
                f"model '{spec.name}': nothing declares its {kind}: name them in config.pbtxt or mmsup.yaml, or add "
                "them in auto_complete_config",
            )
    return Metadata(spec.platform, spec.max_batch_size, spec.inputs, spec.outputs)


def _tensors(of_file: list[Tensor], declared: tuple[TensorSpec, ...]) -> list[Tensor]:
    by_name = {each.get("name"): each for each in of_file}
    return [{**by_name.get(each.name, {}), **_document(each)} for each in declared]


def _document(tensor: TensorSpec) -> Tensor:
    made: Tensor = {"name": tensor.name, "data_type": config_name(tensor.datatype), "dims": list(tensor.shape)}
    return {**made, "optional": True} if tensor.optional else made


def _tensor_spec(spec: ModelSpec, kind: str, tensor: Tensor) -> TensorSpec:
    datatype = from_config_name(str(tensor.get("data_type", "")))
    dims = tensor.get("dims", [])
    if datatype is None or not all(isinstance(each, int) and each >= -1 for each in dims):
        name = tensor.get("name", "")
        text = f"model '{spec.name}': {kind} '{name}' has no data_type and dims that can be served"
        raise ModelError("config_mismatch", text)
    return TensorSpec(str(tensor["name"]), datatype, tuple(dims), bool(tensor.get("optional", False)))


def _instance_group(spec: ModelSpec) -> Document:
    kind = "KIND_CPU" if spec.device == "cpu" else "KIND_GPU"
    return {"name": f"{spec.name}_0", "kind": kind, "count": spec.instances, "gpus": []}
