"""What each action of the URL routes does, takes and answers: the table of the OpenAPI description. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mmsup.ipc.errors import ModelError, ServerError, WorkerError

TEXT: Final = "text/plain"
HTML: Final = "text/html"
JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"
EMPTY: Final = "Empty"
"""A reply without a body."""


@dataclass(frozen=True, slots=True)
class Operation:
    """`request` and `reply` are names in schemas.py, or empty; `codes`: of errors, beside those of all operations."""

    summary: str
    reply: str
    request: str = ""
    codes: tuple[str, ...] = ()
    media: tuple[str, ...] = (JSON,)
    """Of the reply."""
    is_served: bool = True
    is_ready_check: bool = False
    """It also answers 503, with the document of its reply."""


ALWAYS: Final = ("forbidden", "internal", "draining", "unavailable")
OF_BODIES: Final = ("bad_request", "body_timeout", "too_large", "unsupported_media", "queue_full")
_OF_NAMES: Final = ("unknown_model", "unknown_version", "bad_version")
_OF_STATES: Final = (*_OF_NAMES, *ModelError.codes, *WorkerError.codes, *ServerError.codes)
_OF_INFERENCE: Final = (*_OF_STATES, "request_quarantined", "not_implemented")
_OF_LOADS: Final = ("conflict", *_OF_STATES, "not_implemented")
_OF_STATUS: Final = ("unknown_region", "not_implemented")
_OF_REGIONS: Final = ("not_implemented", "too_many_files")
_UNKNOWN: Final = Operation("An endpoint.", "Any", codes=("not_implemented", *_OF_STATES), media=(JSON, BINARY, TEXT))

_OPERATIONS: Final = {
    "page": Operation("What is served, with a request to copy for each model.", "Overview", media=(HTML, JSON, TEXT)),
    "openapi": Operation("This description.", "Any"),
    "live": Operation("Whether this process answers.", "Live"),
    "ready": Operation("Whether the server is ready.", "Ready", is_ready_check=True),
    "metrics": Operation("Metrics for Prometheus.", "Text", media=(TEXT,)),
    "server": Operation("Name, version and extensions of the server.", "ServerMetadata"),
    "models": Operation("The names of all models.", "ModelNames"),
    "all_stats": Operation("Statistics of all models.", "Statistics"),
    "index": Operation("All models and versions with their states.", "Index", "IndexRequest"),
    "load": Operation("Load a model, or load it again.", EMPTY, "LoadRequest", _OF_LOADS),
    "unload": Operation("Unload a model.", EMPTY, "LoadRequest", _OF_LOADS),
    "sleep": Operation("Put a model to sleep.", "Any", "NoMembers", _OF_LOADS),
    "wake": Operation("Load a model that is asleep.", "Any", "NoMembers", _OF_LOADS),
    "other_repository": Operation(
        "Not served: there is one repository.", "Any", "Any", ("not_implemented",), is_served=False
    ),
    "v1_model": Operation("Whether a model is ready.", "V1Model", codes=_OF_NAMES, is_ready_check=True),
    "predict": Operation("Predict, in KServe's first protocol.", "Predictions", "PredictRequest", _OF_INFERENCE),
    "log": Operation("The log settings.", "LogSettings"),
    "set_log": Operation("Change log settings.", "LogSettings", "LogChanges"),
    "trace": Operation("Trace settings of the server or of a model.", "TraceSettings", codes=_OF_NAMES),
    "set_trace": Operation("Change trace settings.", "TraceSettings", "TraceChanges", _OF_NAMES),
    "model": Operation("Inputs and outputs of a model.", "ModelMetadata", codes=_OF_STATES),
    "model_ready": Operation("Whether a model is ready.", "ModelReady", codes=_OF_NAMES, is_ready_check=True),
    "model_config": Operation("The configuration of a model.", "ModelConfig", codes=_OF_STATES),
    "model_stats": Operation("Statistics of a model.", "Statistics", codes=_OF_NAMES),
    "infer": Operation("Infer.", "InferReply", "InferRequest", _OF_INFERENCE, (JSON, BINARY)),
    "system_status": Operation("Memory that clients share.", "Regions", codes=_OF_STATUS),
    "system_register": Operation("Share a file in /dev/shm with the server.", EMPTY, "RegionRequest", _OF_REGIONS),
    "system_unregister": Operation("Share it no more.", EMPTY, "Any", ("not_implemented",)),
    "cuda_status": Operation("Memory of GPUs that clients share.", "Regions", codes=_OF_STATUS),
    "cuda_register": Operation("Share memory of a GPU with the server.", EMPTY, "CudaRegionRequest", _OF_REGIONS),
    "cuda_unregister": Operation("Share it no more.", EMPTY, "Any", ("not_implemented",)),
    "generate": Operation("Infer by flat names and values.", "GenerateReply", "GenerateRequest", _OF_INFERENCE),
    "generate_stream": Operation(
        "The same, with any number of replies as server-sent events.",
        "Any",
        "GenerateRequest",
        _OF_INFERENCE,
        (EVENTS,),
    ),
}


def operation(action: str) -> Operation:
    """Of an action without a row, that it is there and may answer in any way."""
    return _OPERATIONS.get(action, _UNKNOWN)


def is_described(action: str) -> bool:
    return action in _OPERATIONS
