"""Metadata documents of the server and its models: metadata, readiness, configuration. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mmsup.gateway.protocol.extensions import extensions
from mmsup.ipc.errors import MmsupError, make_error
from mmsup.ipc.messages.gateway_control import ConfigureGateway, Route, VersionState
from mmsup.ipc.specs import ENSEMBLE, ModelSpec, TensorSpec
from mmsup.ipc.tensors.datatypes import config_name

Json = dict[str, Any]  # a JSON object

READY: Final = "ready"
_OPERATOR_PREFIX: Final = "mmsup_"
"""Parameters of a model that are options of its workers."""
_BACKENDS: Final = {"ort": "onnxruntime", "pytorch": "pytorch", "custom": "python", ENSEMBLE: ""}


def server_metadata(configuration: ConfigureGateway) -> Json:
    return {
        "name": configuration.server_name,
        "version": configuration.server_version,
        "extensions": extensions(configuration),
    }


def model_metadata(route: Route, state: VersionState) -> Json:
    """Metadata of one version; MmsupError while its tensors are unknown."""
    spec, metadata = state.spec, state.metadata
    if spec is None or metadata is None:
        raise unavailable_error(route.name, state)
    batched = metadata.max_batch_size > 0
    outputs = _tensors(metadata.outputs, batched=batched)
    for each in outputs:
        if each["name"] in metadata.labels:
            each["labels"] = list(metadata.labels[each["name"]])
    return {
        "name": route.name,
        "versions": [each.version for each in route.versions if is_callable(each)] or [spec.version],
        "platform": metadata.platform,
        "inputs": _tensors(metadata.inputs, batched=batched),
        "outputs": outputs,
    }


def unavailable_error(name: str, state: VersionState) -> MmsupError:
    """Why a version has no metadata."""
    which = f"model '{name}' version {state.version}" if state.version else f"model '{name}'"
    text = f"{which} is {state.state}: {state.reason or 'not loaded yet'}"
    return make_error(state.code or "model_loading", text, model=name, retry_after_s=state.retry_after_s or None)


def _tensors(specs: Iterable[TensorSpec], *, batched: bool) -> list[Json]:
    lead = [-1] if batched else []
    return [{"name": each.name, "datatype": each.datatype, "shape": [*lead, *each.shape]} for each in specs]


def is_callable(state: VersionState) -> bool:
    """Whether a request to a version is served: by a worker that is ready, or once one has been loaded from sleep."""
    return state.state == READY or state.wake_wait_s > 0


def readiness_document(name: str, state: VersionState) -> tuple[bool, Json]:
    """Whether a version is ready, and the JSON object for it."""
    if is_callable(state):
        return True, {"name": name, "ready": True, "state": state.state}
    reason = state.reason or f"the model is {state.state}"
    return False, {"name": name, "ready": False, "state": state.state, "error": reason}


def model_config(route: Route, state: VersionState) -> Json:
    """The model's configuration: its file, completed by the values in force."""
    if state.spec is None:
        raise unavailable_error(route.name, state)
    spec, metadata = state.spec, state.metadata
    inputs = metadata.inputs if metadata else spec.inputs
    outputs = metadata.outputs if metadata else spec.outputs
    completed: Json = {
        "name": route.name,
        "platform": metadata.platform if metadata else spec.platform,
        "backend": _BACKENDS.get(spec.engine, spec.engine),
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": metadata.max_batch_size if metadata else spec.max_batch_size,
        "input": [_config_tensor(each, optional=each.optional) for each in inputs],
        "output": [_config_tensor(each) for each in outputs],
        "instance_group": [_instance_group(spec)] if spec.engine != ENSEMBLE else [],
        "default_model_filename": spec.artefact,
        "parameters": {key: {"string_value": value} for key, value in spec.parameters.items()},
    }
    # Tensors, name and batch size are those in force; for the rest the file takes precedence.
    served = {key: completed[key] for key in ("name", "platform", "max_batch_size")}
    if metadata is not None and metadata.decoupled:
        served["model_transaction_policy"] = {"decoupled": True}
    if metadata is not None and metadata.dynamic_batching:
        completed["dynamic_batching"] = {}
    from_file = {key: value for key, value in spec.config.items() if value not in ("", None)}
    if "parameters" in from_file:  # without those for the operator, such as the environment of its workers
        given = from_file["parameters"]
        from_file["parameters"] = {key: given[key] for key in given if not key.startswith(_OPERATOR_PREFIX)}
    for key in ("input", "output"):  # each with the other keys of the file (`label_filename`, `format`)
        by_name = {each.get("name"): each for each in from_file.get(key, [])}
        served[key] = [{**by_name.get(each["name"], {}), **each} for each in completed[key]]
    return {**completed, **from_file, **served}


def _config_tensor(spec: TensorSpec, *, optional: bool = False) -> Json:
    made: Json = {"name": spec.name, "data_type": config_name(spec.datatype), "dims": list(spec.shape)}
    if optional:
        made["optional"] = True
    return made


def _instance_group(spec: ModelSpec) -> Json:
    kind = "KIND_CPU" if spec.device == "cpu" else "KIND_GPU"
    group: Json = {"name": f"{spec.name}_0", "kind": kind, "count": spec.instances}
    if spec.device.startswith("cuda:") and spec.device[5:].isdigit():
        group["gpus"] = [int(spec.device[5:])]
    return group
