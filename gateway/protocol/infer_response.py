"""Inference responses: JSON, optionally followed by binary tensors. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mmsup.gateway.protocol import classification, json_tensors
from mmsup.gateway.protocol.binary_tensors import check_strings
from mmsup.gateway.protocol.infer_request import RequestedOutput
from mmsup.gateway.protocol.inference_job import OutputTensor
from mmsup.ipc.errors import WorkerError
from mmsup.ipc.tensors.datatypes import element_count


@dataclass(frozen=True, slots=True)
class ResponseContext:
    """The request and the model version that are answered."""

    model: str
    version: str
    request_id: str
    batched: bool
    """Whether the first axis of each output is the batch."""
    labels: dict[str, list[str]]
    """Class labels by output, if the model has any."""


@dataclass(frozen=True, slots=True)
class InferResponse:
    """`head`: JSON; with `blobs` (even an empty list) it is followed by binary data."""

    head: bytes
    blobs: list[memoryview] | None

    @property
    def size(self) -> int:
        return len(self.head) + sum(len(each) for each in self.blobs or ())


def build_response(
    origin: ResponseContext, wanted: Sequence[RequestedOutput], outputs: Sequence[OutputTensor]
) -> InferResponse:
    """The response with the requested outputs, in that order."""
    blobs: list[memoryview] = []
    shown: list[dict[str, Any]] = []  # JSON objects
    for each, tensor in zip(wanted, wanted_tensors(origin, wanted, outputs), strict=True):
        shown.append(_output(tensor, blobs, each))
    document: dict[str, Any] = {"model_name": origin.model, "model_version": origin.version}  # a JSON object
    if origin.request_id:
        document["id"] = origin.request_id
    document["outputs"] = shown
    binary = any(each.binary for each in wanted)
    return InferResponse(orjson.dumps(document), blobs if binary else None)


def wanted_tensors(
    origin: ResponseContext, wanted: Sequence[RequestedOutput], outputs: Sequence[OutputTensor]
) -> list[OutputTensor]:
    """The requested outputs in their order, those with `classes` as classifications."""
    made = {each.name: each for each in outputs}
    check_outputs(origin.model, wanted, made)
    tensors: list[OutputTensor] = []
    for each in wanted:
        tensor = made[each.spec.name]
        if each.classes:
            labels = origin.labels.get(tensor.name, [])
            tensor = classification.top_classes(tensor, each.classes, labels, batched=origin.batched)
        tensors.append(tensor)
    return tensors


def check_outputs(model: str, wanted: Sequence[RequestedOutput], made: Mapping[str, OutputTensor]) -> None:
    """WorkerError if the outputs do not have the declared datatypes, or strings are cut off."""
    for each in wanted:
        name, fault = each.spec.name, ""
        tensor = made.get(name)
        if tensor is None:
            fault = "is missing"
        elif tensor.datatype != each.spec.datatype:
            fault = f"is {tensor.datatype} and not {each.spec.datatype}"
        elif tensor.datatype == "BYTES":
            try:
                check_strings(tensor.data, element_count(tensor.shape))
            except ValueError as error:
                fault = f"does not hold the strings that it claims: {error}"
        if fault:
            raise WorkerError("bad_worker_reply", f"output '{name}' of model '{model}' {fault}", model=model)


def region_parameters(output: RequestedOutput, size: int) -> dict[str, Any]:  # JSON scalars
    """Where an output of `size` bytes was written to; empty if it is in the response."""
    span = output.region
    if span is None:
        return {}
    offset = {"shared_memory_offset": span.offset} if span.offset else {}
    return {"shared_memory_region": span.region, **offset, "shared_memory_byte_size": size}


def _output(tensor: OutputTensor, blobs: list[memoryview], wanted: RequestedOutput) -> dict[str, Any]:  # a JSON object
    made: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}  # as above
    if wanted.region is not None:
        return made  # C++ clients of Triton take any `parameters` for those of binary data
    if wanted.binary:
        data = tensor.data.cast("B") if tensor.data.format != "B" else tensor.data
        made["parameters"] = {"binary_data_size": len(data)}
        blobs.append(data)
    else:
        if wanted.base64:
            made["parameters"] = {"content_type": "base64"}
        written = json_tensors.to_json(tensor.data, tensor.datatype, tensor.name, is_base64=wanted.base64)
        made["data"] = orjson.Fragment(written)
    return made
