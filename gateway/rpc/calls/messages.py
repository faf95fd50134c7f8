"""The messages and services of gRPC, written from the public specifications, in a descriptor pool of our own.

- `inference.GRPCInferenceService`: KServe's Open Inference Protocol v2 and Triton's extensions of it
- `grpc.health.v1.Health`
- `grpc.reflection.v1.ServerReflection` and its older form `v1alpha`, which has the same messages
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from mmsup.ipc.protobuf import model_config
from mmsup.ipc.protobuf.definition import make_file

Message = Any
"""A protobuf message of this pool: its classes are made when this file is imported, so no checker knows them."""

INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTIONS: Final = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_TENSOR: Final = "name 1 string, datatype 2 string, shape 3 int64*"
_MESSAGES: Final = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live 1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready 1 bool",
    "ModelReadyRequest": "name 1 string, version 2 string",
    "ModelReadyResponse": "ready 1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name 1 string, version 2 string, extensions 3 string*",
    "ModelMetadataRequest": "name 1 string, version 2 string",
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": "name 1 string, versions 2 string*, platform 3 string, inputs 4 TensorMetadata*,"
    " outputs 5 TensorMetadata*",
    "InferParameter": "bool_param 1 bool|, int64_param 2 int64|, string_param 3 string|, double_param 4 double|,"
    " uint64_param 5 uint64|",
    "InferTensorContents": "bool_contents 1 bool*, int_contents 2 int32*, int64_contents 3 int64*,"
    " uint_contents 4 uint32*, uint64_contents 5 uint64*, fp32_contents 6 float*, fp64_contents 7 double*,"
    " bytes_contents 8 bytes*",
    "InferTensor": f"{_TENSOR}, parameters 4 InferParameter{{}}, contents 5 InferTensorContents",
    "InferRequestedOutput": "name 1 string, parameters 2 InferParameter{}",
    "ModelInferRequest": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 InferParameter{},"
    " inputs 5 InferTensor*, outputs 6 InferRequestedOutput*, raw_input_contents 7 bytes*",
    "ModelInferResponse": "model_name 1 string, model_version 2 string, id 3 string, parameters 4 InferParameter{},"
    " outputs 5 InferTensor*, raw_output_contents 6 bytes*",
    "ModelStreamInferResponse": "error_message 1 string, infer_response 2 ModelInferResponse",
    "ModelConfigRequest": "name 1 string, version 2 string",
    "ModelConfigResponse": "config 1 mmsup.config.ModelConfig",
    "ModelStatisticsRequest": "name 1 string, version 2 string",
    "StatisticDuration": "count 1 uint64, ns 2 uint64",
    "InferStatistics": "success 1 StatisticDuration, fail 2 StatisticDuration, queue 3 StatisticDuration,"
    " compute_input 4 StatisticDuration, compute_infer 5 StatisticDuration, compute_output 6 StatisticDuration,"
    " cache_hit 7 StatisticDuration, cache_miss 8 StatisticDuration",
    "InferResponseStatistics": "compute_infer 1 StatisticDuration, compute_output 2 StatisticDuration,"
    " success 3 StatisticDuration, fail 4 StatisticDuration, empty_response 5 StatisticDuration,"
    " cancel 6 StatisticDuration",
    "InferBatchStatistics": "batch_size 1 uint64, compute_input 2 StatisticDuration,"
    " compute_infer 3 StatisticDuration, compute_output 4 StatisticDuration",
    "MemoryUsage": "type 1 string, id 2 int64, byte_size 3 uint64",
    "ModelStatistics": "name 1 string, version 2 string, last_inference 3 uint64, inference_count 4 uint64,"
    " execution_count 5 uint64, inference_stats 6 InferStatistics, batch_stats 7 InferBatchStatistics*,"
    " memory_usage 8 MemoryUsage*, response_stats 9 InferResponseStatistics{}",
    "ModelStatisticsResponse": "model_stats 1 ModelStatistics*",
    "ModelRepositoryParameter": "bool_param 1 bool|, int64_param 2 int64|, string_param 3 string|,"
    " bytes_param 4 bytes|",
    "RepositoryIndexRequest": "repository_name 1 string, ready 2 bool",
    "ModelIndex": "name 1 string, version 2 string, state 3 string, reason 4 string",
    "RepositoryIndexResponse": "models 1 ModelIndex*",
    "RepositoryModelLoadRequest": "repository_name 1 string, model_name 2 string,"
    " parameters 3 ModelRepositoryParameter{}",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name 1 string, model_name 2 string,"
    " parameters 3 ModelRepositoryParameter{}",
    "RepositoryModelUnloadResponse": "",
    "SystemSharedMemoryStatusRequest": "name 1 string",
    "SystemRegion": "name 1 string, key 2 string, offset 3 uint64, byte_size 4 uint64",
    "SystemSharedMemoryStatusResponse": "regions 1 SystemRegion{}",
    "SystemSharedMemoryRegisterRequest": "name 1 string, key 2 string, offset 3 uint64, byte_size 4 uint64",
    "SystemSharedMemoryRegisterResponse": "",
    "SystemSharedMemoryUnregisterRequest": "name 1 string",
    "SystemSharedMemoryUnregisterResponse": "",
    "CudaSharedMemoryStatusRequest": "name 1 string",
    "CudaRegion": "name 1 string, device_id 2 uint64, byte_size 3 uint64",
    "CudaSharedMemoryStatusResponse": "regions 1 CudaRegion{}",
    "CudaSharedMemoryRegisterRequest": "name 1 string, raw_handle 2 bytes, device_id 3 int64, byte_size 4 uint64",
    "CudaSharedMemoryRegisterResponse": "",
    "CudaSharedMemoryUnregisterRequest": "name 1 string",
    "CudaSharedMemoryUnregisterResponse": "",
    "TraceValue": "value 1 string*",
    "TraceSettingRequest": "settings 1 TraceValue{}, model_name 2 string",
    "TraceSettingResponse": "settings 1 TraceValue{}",
    "LogValue": "bool_param 1 bool|, uint32_param 2 uint32|, string_param 3 string|",
    "LogSettingsRequest": "settings 1 LogValue{}",
    "LogSettingsResponse": "settings 1 LogValue{}",
}
_UNARY: Final = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    *("TraceSetting", "LogSettings"),
)
_METHODS: Final = {
    **{name: f"{name}Request {name}Response" for name in _UNARY},
    "ModelStreamInfer": "stream ModelInferRequest stream ModelStreamInferResponse",
}
_SERVING: Final = "UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN"
_HEALTH_MESSAGES: Final = {
    "HealthCheckRequest": "service 1 string",
    "HealthCheckResponse": "status 1 ServingStatus",
}
_HEALTH_METHODS: Final = {
    "Check": "HealthCheckRequest HealthCheckResponse",
    "Watch": "HealthCheckRequest stream HealthCheckResponse",
}
_REFLECTION_MESSAGES: Final = {
    "ServerReflectionRequest": "host 1 string, file_by_filename 3 string|, file_containing_symbol 4 string|,"
    " file_containing_extension 5 ExtensionRequest|, all_extension_numbers_of_type 6 string|, list_services 7 string|",
    "ExtensionRequest": "containing_type 1 string, extension_number 2 int32",
    "ServerReflectionResponse": "valid_host 1 string, original_request 2 ServerReflectionRequest,"
    " file_descriptor_response 4 FileDescriptorResponse|, all_extension_numbers_response 5 ExtensionNumberResponse|,"
    " list_services_response 6 ListServiceResponse|, error_response 7 ErrorResponse|",
    "FileDescriptorResponse": "file_descriptor_proto 1 bytes*",
    "ExtensionNumberResponse": "base_type_name 1 string, extension_number 2 int32*",
    "ListServiceResponse": "service 1 ServiceResponse*",
    "ServiceResponse": "name 1 string",
    "ErrorResponse": "error_code 1 int32, error_message 2 string",
}
_REFLECTION_METHODS: Final = {
    "ServerReflectionInfo": "stream ServerReflectionRequest stream ServerReflectionResponse",
}


def _reflection_file(version: str) -> FileDescriptorProto:
    package = f"grpc.reflection.{version}"
    services = {"ServerReflection": _REFLECTION_METHODS}
    return make_file(
        f"grpc/reflection/{version}/reflection.proto", package, _REFLECTION_MESSAGES, syntax="proto3", services=services
    )


FILES: Final = (
    model_config.model_config_file(),
    make_file(
        "grpc_service.proto",
        "inference",
        _MESSAGES,
        syntax="proto3",
        imports=(model_config.FILE_NAME,),
        services={"GRPCInferenceService": _METHODS},
    ),
    make_file(
        "grpc/health/v1/health.proto",
        "grpc.health.v1",
        _HEALTH_MESSAGES,
        {"ServingStatus": _SERVING},
        syntax="proto3",
        services={"Health": _HEALTH_METHODS},
    ),
    _reflection_file("v1"),
    _reflection_file("v1alpha"),
)
"""After the files that they import."""
_pool = descriptor_pool.DescriptorPool()
for _file in FILES:
    _pool.Add(_file)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of a service: the classes of its messages, and which of the two come in streams."""

    request: type[Message]
    reply: type[Message]
    streams_requests: bool
    streams_replies: bool


def message_class(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def methods(service: str) -> dict[str, Method]:
    """By name, of the service with this full name."""
    return {
        each.name: Method(
            message_factory.GetMessageClass(each.input_type),
            message_factory.GetMessageClass(each.output_type),
            each.client_streaming,
            each.server_streaming,
        )
        for each in _pool.FindServiceByName(service).methods
    }


def file_names_of(symbol: str) -> list[str]:
    """The file that defines a service, method, message or enum, and those that it imports, all by name; KeyError."""
    try:
        file = _pool.FindFileContainingSymbol(symbol)
    except KeyError:  # which the library raises for methods
        file = _pool.FindMethodByName(symbol).containing_service.file
    return _with_imports(file.name)


def serialized_files(name: str) -> list[bytes]:
    """The file of this name and those that it imports, each a serialised FileDescriptorProto; KeyError."""
    by_name = {each.name: each for each in FILES}
    return [by_name[each].SerializeToString() for each in _with_imports(name)]


def _with_imports(name: str) -> list[str]:
    by_name = {each.name: each for each in FILES}
    return [name, *by_name[name].dependency]
