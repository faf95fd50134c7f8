"""Our messages against those of tritonclient: whoever speaks one understands the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from tritonclient.grpc import model_config_pb2, service_pb2

from mmsup.gateway.rpc.calls import messages
from mmsup.gateway.rpc.calls.messages import HEALTH, INFERENCE, REFLECTIONS, message_class, methods

THEIRS = service_pb2.DESCRIPTOR
RENAMED = {
    "ModelInferRequest.InferInputTensor": "InferTensor",
    "ModelInferResponse.InferOutputTensor": "InferTensor",
    "ModelInferRequest.InferRequestedOutputTensor": "InferRequestedOutput",
    "ModelMetadataResponse.TensorMetadata": "TensorMetadata",
    "RepositoryIndexResponse.ModelIndex": "ModelIndex",
    "SystemSharedMemoryStatusResponse.RegionStatus": "SystemRegion",
    "CudaSharedMemoryStatusResponse.RegionStatus": "CudaRegion",
    "TraceSettingRequest.SettingValue": "TraceValue",
    "TraceSettingResponse.SettingValue": "TraceValue",
    "LogSettingsRequest.SettingValue": "LogValue",
    "LogSettingsResponse.SettingValue": "LogValue",
}
"""Messages that are inside of others there; names of messages are not on the wire."""


def inner(message: Any) -> Iterator[Any]:  # descriptors
    yield message
    for each in message.nested_types:
        if not each.GetOptions().map_entry:
            yield from inner(each)


ALL = [each for top in THEIRS.message_types_by_name.values() for each in inner(top)]


def ours(their_name: str) -> Any:  # a descriptor
    name = their_name.removeprefix("inference.")
    return message_class(f"inference.{RENAMED.get(name, name)}").DESCRIPTOR


def shape_of(field: Any) -> tuple[Any, ...]:
    """All that is on the wire, or seen by who uses the field: a map by its key and value."""
    kind = field.message_type
    is_map = kind is not None and kind.GetOptions().map_entry
    parts = [(each.name, each.number, each.type) for each in kind.fields] if is_map else []
    oneof = field.containing_oneof is not None
    return field.name, field.number, field.type, field.is_repeated, oneof, is_map, parts


@pytest.mark.parametrize("their", ALL, ids=lambda each: each.full_name)
def test_a_message_has_the_same_fields(their: Any) -> None:
    assert {each.number: shape_of(each) for each in ours(their.full_name).fields} == {
        each.number: shape_of(each) for each in their.fields
    }


def test_fields_of_messages_are_the_same_messages() -> None:
    for their in ALL:
        for field in their.fields:
            if field.message_type is None or field.message_type.GetOptions().map_entry:
                continue
            if field.message_type.full_name.startswith("inference.ModelConfig"):
                continue
            mine = ours(their.full_name).fields_by_number[field.number].message_type
            assert mine.name == ours(field.message_type.full_name).name, field.full_name


def test_every_field_of_a_model_s_configuration_has_the_same_number_and_type() -> None:
    def compare(mine: Any, their: Any, seen: set[str]) -> None:  # descriptors
        if their.full_name in seen:
            return
        seen.add(their.full_name)
        for field in mine.fields:
            other = their.fields_by_number[field.number]
            assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated), (
                field.name
            )
            if field.message_type is not None:
                compare(field.message_type, other.message_type, seen)
            if field.enum_type is not None:
                found = {each.name: each.number for each in other.enum_type.values}
                for value in field.enum_type.values:
                    assert found.get(value.name) == value.number, f"{other.enum_type.full_name}.{value.name}"

    seen: set[str] = set()
    compare(message_class("mmsup.config.ModelConfig").DESCRIPTOR, model_config_pb2.ModelConfig.DESCRIPTOR, seen)
    assert len(seen) > 20


def test_the_service_has_the_methods_that_clients_call() -> None:
    their = {each.name: each for each in THEIRS.services_by_name["GRPCInferenceService"].methods}
    mine = methods(INFERENCE)
    assert set(mine) <= set(their)
    assert set(their) - set(mine) == set()
    for name, method in mine.items():
        assert method.request.DESCRIPTOR.name == their[name].input_type.name
        assert method.reply.DESCRIPTOR.name == their[name].output_type.name
        assert (method.streams_requests, method.streams_replies) == (
            their[name].client_streaming,
            their[name].server_streaming,
        )


@pytest.mark.parametrize(
    ("service", "module"),
    [
        (HEALTH, "grpc_health.v1.health_pb2"),
        (REFLECTIONS[1], "grpc_reflection.v1alpha.reflection_pb2"),
        (REFLECTIONS[0], "grpc_reflection.v1alpha.reflection_pb2"),
    ],
)
def test_health_and_reflection_have_the_fields_of_the_public_libraries(service: str, module: str) -> None:
    their = __import__(module, fromlist=["DESCRIPTOR"]).DESCRIPTOR
    package = service.rpartition(".")[0]
    for name in (
        ("HealthCheckRequest", "HealthCheckResponse")
        if service == HEALTH
        else (
            *("ServerReflectionRequest", "ExtensionRequest", "ServerReflectionResponse", "FileDescriptorResponse"),
            *("ExtensionNumberResponse", "ListServiceResponse", "ServiceResponse", "ErrorResponse"),
        )
    ):
        mine = message_class(f"{package}.{name}").DESCRIPTOR
        other = their.message_types_by_name[name]
        assert [(each.name, each.number, each.type) for each in mine.fields] == [
            (each.name, each.number, each.type) for each in other.fields
        ]


def test_the_files_make_a_pool_of_their_own() -> None:
    """As a client of reflection does it, and beside tritonclient's, which has the same names."""
    pool = descriptor_pool.DescriptorPool()
    for each in messages.FILES:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(each.SerializeToString()))
    assert pool.FindServiceByName(INFERENCE).methods_by_name["ModelInfer"].input_type.full_name == (
        "inference.ModelInferRequest"
    )
