"""The JSON schemas of requests and replies, by name. Pure."""

from __future__ import annotations

from typing import Any, Final

from mmsup.ipc.log_settings import LOG_FORMATS

Schema = dict[str, Any]  # JSON Schema

TEXT: Final[Schema] = {"type": "string"}
_BOOL: Final[Schema] = {"type": "boolean"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_ANY: Final[Schema] = {}
_DATATYPES: Final = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(required: str = "", **members: Schema) -> Schema:
    made: Schema = {"type": "object", "properties": members}
    return {**made, "required": required.split()} if required else made


_SHAPE: Final = _list({"type": "integer"})
_PARAMETERS: Final[Schema] = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DATATYPE: Final[Schema] = {"enum": list(_DATATYPES)}
_LOG_FORMAT: Final[Schema] = {"enum": list(LOG_FORMATS)}
_LOG_CHANGES: Final = _object(
    log_info=_BOOL, log_warning=_BOOL, log_error=_BOOL, log_verbose_level=_COUNT, log_format=_LOG_FORMAT
)
_TRACE_NUMBER: Final[Schema] = {"type": ["string", "integer", "null"]}
_LEVELS: Final = _list({"enum": ["OFF", "TIMESTAMPS", "TENSORS"]})

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object("error code retryable", error=TEXT, code=TEXT, retryable=_BOOL, model=TEXT, request_id=TEXT),
    "Any": _ANY,
    "Text": TEXT,
    "Live": _object("live", live=_BOOL),
    "Ready": _object("live ready", live=_BOOL, ready=_BOOL, error=TEXT),
    "Overview": _object(
        "server version models paths",
        server=TEXT,
        version=TEXT,
        models=_list(_object("name state request", name=TEXT, state=TEXT, reason=TEXT, request=TEXT)),
        more_models=_COUNT,
        paths=_list(_object("method path summary", method=TEXT, path=TEXT, summary=TEXT)),
    ),
    "ServerMetadata": _object("name version extensions", name=TEXT, version=TEXT, extensions=_list(TEXT)),
    "ModelNames": _object("models", models=_list(TEXT)),
    "Statistics": _object("model_stats", model_stats=_list(_object("name version", name=TEXT, version=TEXT))),
    "IndexRequest": _object(ready=_BOOL),
    "Index": _list(_object("name", name=TEXT, version=TEXT, state=TEXT, reason=TEXT)),
    "LoadRequest": _object(parameters=_PARAMETERS),
    "NoMembers": {"type": "object", "maxProperties": 0},
    "Tensor": _object("name datatype shape", name=TEXT, datatype=_DATATYPE, shape=_SHAPE),
    "ModelMetadata": _object(
        "name versions platform inputs outputs",
        name=TEXT,
        versions=_list(TEXT),
        platform=TEXT,
        inputs=_list(ref("Tensor")),
        outputs=_list(ref("Tensor")),
    ),
    "ModelReady": _object("name ready state", name=TEXT, ready=_BOOL, state=TEXT, error=TEXT),
    "ModelConfig": _object("name max_batch_size input output", name=TEXT, max_batch_size={"type": "integer"}),
    "InferRequest": _object(
        "inputs",
        id=TEXT,
        parameters=_PARAMETERS,
        inputs=_list(ref("InputTensor")),
        outputs=_list(_object("name", name=TEXT, parameters=_PARAMETERS)),
    ),
    "InputTensor": _object(
        "name datatype shape", name=TEXT, datatype=_DATATYPE, shape=_SHAPE, data=_ANY, parameters=_PARAMETERS
    ),
    "InferReply": _object(
        "model_name model_version outputs",
        model_name=TEXT,
        model_version=TEXT,
        id=TEXT,
        outputs=_list(_object("name datatype shape", name=TEXT, datatype=_DATATYPE, shape=_SHAPE, data=_ANY)),
    ),
    "GenerateRequest": _object(id=TEXT, parameters={"type": "object"}),
    "GenerateReply": _object("model_name model_version", id=TEXT, model_name=TEXT, model_version=TEXT),
    "PredictRequest": _object("instances", instances={**_list(_ANY), "minItems": 1}, parameters=_PARAMETERS),
    "Predictions": _object("predictions", predictions=_list(_ANY)),
    "V1Model": _object("name ready", name=TEXT, ready=_BOOL, error=TEXT),
    "LogSettings": {**_LOG_CHANGES, "required": ["log_file", *_LOG_CHANGES["properties"]]},
    "LogChanges": _LOG_CHANGES,
    "TraceSettings": _object(
        "trace_level trace_rate trace_count log_frequency trace_file",
        trace_level=_LEVELS,
        trace_file=TEXT,
        trace_rate=TEXT,
        trace_count=TEXT,
        log_frequency=TEXT,
    ),
    "TraceChanges": _object(
        trace_level={"anyOf": [_LEVELS, {"type": "null"}]},
        trace_rate=_TRACE_NUMBER,
        trace_count=_TRACE_NUMBER,
        log_frequency=_TRACE_NUMBER,
    ),
    "Regions": _list(_object("name byte_size", name=TEXT, key=TEXT, offset=_COUNT, byte_size=_COUNT, device_id=_COUNT)),
    "RegionRequest": _object("key byte_size", key=TEXT, offset=_COUNT, byte_size=_COUNT),
    "CudaRegionRequest": _object(
        "raw_handle byte_size", raw_handle=_object("b64", b64=TEXT), device_id=_COUNT, byte_size=_COUNT
    ),
}
