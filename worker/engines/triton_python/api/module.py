"""The module `triton_python_backend_utils`, made here: models import it, and it is on no disk.

It is in `sys.modules` of a worker whose model needs it, and nowhere else. What it has is listed in
docs/triton-python.md.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Final, NoReturn

from mmsup.ipc.python_models import TRITON_MODULE
from mmsup.worker.engines.triton_python.api import datatypes, model_config, request
from mmsup.worker.engines.triton_python.api.errors import TritonError, TritonModelException
from mmsup.worker.engines.triton_python.api.logger import BackendLogger
from mmsup.worker.engines.triton_python.api.metrics import MetricFamily
from mmsup.worker.engines.triton_python.api.request_content import SEQUENCE_END, SEQUENCE_START, PreferredMemory
from mmsup.worker.engines.triton_python.api.response import InferenceResponse
from mmsup.worker.engines.triton_python.api.response_sender import RESPONSE_COMPLETE_FINAL, InferenceResponseSender
from mmsup.worker.engines.triton_python.api.tensor import BackendTensor

MODEL_CONTROL: Final = "a model does not load, unload or ask for other models here: that is for an operator or a client"


class _BackendUtils(ModuleType):
    """Says which part of Triton's module is missing, where a model asks for it."""

    def __getattr__(self, name: str) -> Any:  # of any type
        raise AttributeError(
            f"{TRITON_MODULE} has no '{name}' in this version; triton-python.md of mmsup's docs lists what it has"
        )


def _model_control(*_: object, **__: object) -> NoReturn:
    raise TritonModelException(MODEL_CONTROL)


def get_input_tensor_by_name(inference_request: request.InferenceRequest, name: str) -> BackendTensor | None:
    return next((each for each in inference_request.inputs() if each.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> BackendTensor | None:
    return next((each for each in inference_response.output_tensors() if each.name() == name), None)


_NAMES: Final[dict[str, Any]] = {
    "Tensor": BackendTensor,
    "InferenceRequest": request.InferenceRequest,
    "InferenceResponse": InferenceResponse,
    "InferenceResponseSender": InferenceResponseSender,
    "TritonError": TritonError,
    "TritonModelException": TritonModelException,
    "Logger": BackendLogger,
    "MetricFamily": MetricFamily,
    "ModelConfig": model_config.BackendModelConfig,
    "PreferredMemory": PreferredMemory,
    "TRITONSERVER_MEMORY_CPU": 0,
    "TRITONSERVER_MEMORY_GPU": 1,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START": SEQUENCE_START,
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END": SEQUENCE_END,
    "TRITONSERVER_REQUEST_RELEASE_ALL": request.RELEASE_ALL,
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE": request.RELEASE_RESCHEDULE,
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL": RESPONSE_COMPLETE_FINAL,
    "get_input_tensor_by_name": get_input_tensor_by_name,
    "get_output_tensor_by_name": get_output_tensor_by_name,
    "get_input_config_by_name": model_config.get_input_config_by_name,
    "get_output_config_by_name": model_config.get_output_config_by_name,
    "using_decoupled_model_transaction_policy": model_config.using_decoupled_model_transaction_policy,
    "triton_string_to_numpy": datatypes.triton_string_to_numpy,
    "triton_to_numpy_type": datatypes.triton_to_numpy_type,
    "numpy_to_triton_type": datatypes.numpy_to_triton_type,
    "TRITON_STRING_TO_NUMPY": datatypes.TYPES_BY_NAME,
    "load_model": _model_control,
    "unload_model": _model_control,
    "is_model_ready": _model_control,
}


def install_backend_utils(model_directory: str) -> None:
    """Put the module where an import finds it. `model_directory`: of the model that is loaded, with its version."""
    module = sys.modules.get(TRITON_MODULE)
    if not isinstance(module, _BackendUtils):
        module = sys.modules[TRITON_MODULE] = _BackendUtils(TRITON_MODULE, __doc__)
        vars(module).update(_NAMES)
    vars(module)["get_model_dir"] = lambda: model_directory
