"""The methods that answer one message with one, health and reflection."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from harness.client_region import client_region
from http2_client import data
from mmsup.gateway.rpc.calls.messages import HEALTH, INFERENCE, REFLECTIONS, Message, message_class, methods
from mmsup.ipc.errors import CallerError, ModelError
from rpc_session import Call, RpcSession, framed, infer_request, run

OK, INVALID, NOT_FOUND, DENIED, UNIMPLEMENTED, INTERNAL = 0, 3, 5, 7, 12, 13
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
HEALTH_REQUEST = message_class("grpc.health.v1.HealthCheckRequest")
HEALTH_REPLY = message_class("grpc.health.v1.HealthCheckResponse")


def request(method: str, **fields: Any) -> Message:
    return methods(INFERENCE)[method].request(**fields)


def reply(call: Call, method: str) -> Message:
    assert call.code == OK, call.text
    (found,) = call.messages()
    return methods(INFERENCE)[method].reply.FromString(found)


async def answer(session: RpcSession, method: str, **fields: Any) -> Message:
    return reply(await session.unary(method, request(method, **fields)), method)


def test_readiness_is_an_answer_and_not_an_error() -> None:
    async def check(session: RpcSession) -> None:
        assert (await answer(session, "ServerLive")).live
        assert (await answer(session, "ServerReady")).ready
        assert (await answer(session, "ModelReady", name="m")).ready
        assert (await answer(session, "ModelReady", name="m", version="1")).ready
        for fields in ({"name": "no"}, {"name": "m", "version": "9"}, {"name": "m", "version": "x y"}, {}):
            assert not (await answer(session, "ModelReady", **fields)).ready
        session.router.status.ready = False
        assert not (await answer(session, "ServerReady")).ready
        assert (await answer(session, "ServerLive")).live

    run(check)


def test_metadata_say_what_http_says() -> None:
    async def check(session: RpcSession) -> None:
        server = await answer(session, "ServerMetadata")
        assert (server.name, server.version) == ("mmsup", "9.9")
        assert "binary_tensor_data" in server.extensions
        model = await answer(session, "ModelMetadata", name="m")
        assert (model.name, list(model.versions), model.platform) == ("m", ["1"], "python")
        assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [("X", "FP32", [-1])]
        config = (await answer(session, "ModelConfig", name="m")).config
        assert (config.name, config.max_batch_size) == ("m", 0)
        assert [(each.name, list(each.dims)) for each in config.input] == [("X", [-1])]

    run(check)


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_a_model_that_is_not_there_has_none(method: str) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.unary(method, request(method, name="no"))
        assert (call.code, call.text.startswith("Request for unknown model")) == (NOT_FOUND, True)
        call = await session.unary(method, request(method, name="m", version="9"))
        assert call.code == NOT_FOUND

    run(check)


def test_statistics_count_what_was_served() -> None:
    async def check(session: RpcSession) -> None:
        for _ in range(3):
            assert (await session.unary("ModelInfer", infer_request())).code == OK
        for fields in ({}, {"name": "m"}, {"name": "m", "version": "1"}):
            (found,) = (await answer(session, "ModelStatistics", **fields)).model_stats
            assert (found.name, found.version, found.inference_count) == ("m", "1", 3)
            assert found.inference_stats.success.count == 3
            assert found.inference_stats.compute_infer.ns == 9000

    run(check)


def test_the_index_is_the_controller_s() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers["index"] = [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        (found,) = (await answer(session, "RepositoryIndex", ready=True)).models
        assert (found.name, found.version, found.state, found.reason) == ("m", "1", "READY", "")
        assert session.router.asked[-1] == ("index", {"ready": True})
        call = await session.unary("RepositoryIndex", request("RepositoryIndex", repository_name="x"))
        assert call.code == UNIMPLEMENTED

    run(check)


def test_load_and_unload_go_to_the_controller_with_their_parameters() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers |= {"load": {}, "unload": {}}
        load = request("RepositoryModelLoad", model_name="m")
        load.parameters["config"].string_param = "{}"
        assert (await session.unary("RepositoryModelLoad", load)).code == OK
        unload = request("RepositoryModelUnload", model_name="m")
        unload.parameters["unload_dependents"].bool_param = True
        assert (await session.unary("RepositoryModelUnload", unload)).code == OK
        assert session.router.asked == [
            ("load", {"name": "m", "parameters": {"config": "{}"}}),
            ("unload", {"name": "m", "parameters": {"unload_dependents": True}}),
        ]

    run(check)


def test_a_load_that_fails_has_the_controller_s_error() -> None:
    async def check(session: RpcSession) -> None:
        load = request("RepositoryModelLoad", model_name="m")
        session.router.answers["load"] = ModelError("load_failed", "failed to load 'm', it is broken")
        call = await session.unary("RepositoryModelLoad", load)
        assert (call.code, call.text) == (INTERNAL, "failed to load 'm', it is broken")
        session.router.answers["load"] = CallerError("unknown_model", "failed to load 'm', not there")
        assert (await session.unary("RepositoryModelLoad", load)).code == NOT_FOUND
        load.parameters["file:1/x"].bytes_param = b"x"
        call = await session.unary("RepositoryModelLoad", load)
        assert call.code == DENIED
        assert call.text.startswith("failed to load 'm': files may not be sent to this server")

    run(check)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_control_is_for_clients_on_this_machine_alone(method: str) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.unary(method, request(method, model_name="m"))
        assert (call.code, session.router.asked) == (DENIED, [])
        assert (await session.unary("ModelInfer", infer_request())).code == OK

    run(check, is_local=False)


def test_log_settings_go_to_the_controller_and_back() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers["log_settings"] = {"log_info": False, "log_verbose_level": 2, "log_format": "json"}
        change = request("LogSettings")
        change.settings["log_info"].bool_param = False
        change.settings["log_verbose_level"].uint32_param = 2
        change.settings["log_error"].SetInParent()
        shown = reply(await session.unary("LogSettings", change), "LogSettings").settings
        changes = {"log_info": False, "log_verbose_level": 2, "log_error": None}
        assert session.router.asked == [("log_settings", {"settings": changes})]
        assert [shown[key].WhichOneof("choice") for key in session.router.answers["log_settings"]] == [
            "bool_param", "uint32_param", "string_param",
        ]  # fmt: skip
        assert (shown["log_verbose_level"].uint32_param, shown["log_format"].string_param) == (2, "json")

    run(check)


def test_trace_settings_go_to_the_controller_and_back() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers["trace_settings"] = {"trace_level": ["OFF"], "trace_rate": "7"}
        change = request("TraceSetting", model_name="m")
        change.settings["trace_level"].value.append("OFF")
        change.settings["trace_rate"].SetInParent()
        shown = reply(await session.unary("TraceSetting", change), "TraceSetting").settings
        changes = {"trace_level": ["OFF"], "trace_rate": None}
        assert session.router.asked == [("trace_settings", {"settings": changes, "name": "m"})]
        assert (list(shown["trace_level"].value), list(shown["trace_rate"].value)) == (["OFF"], ["7"])

    run(check)


@pytest.mark.parametrize("method", ["LogSettings", "TraceSetting"])
def test_other_machines_may_see_settings_and_change_none(method: str) -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers |= {"log_settings": {}, "trace_settings": {}}
        await answer(session, method)
        change = request(method)
        change.settings["x"].SetInParent()
        assert (await session.unary(method, change)).code == DENIED
        assert len(session.router.asked) == 1

    run(check, is_local=False)


def test_memory_of_a_gpu_needs_a_whole_handle_and_is_shown_with_its_device() -> None:
    async def check(session: RpcSession) -> None:
        method, given = "CudaSharedMemoryRegister", {"name": "r", "device_id": 1, "byte_size": 64}
        call = await session.unary(method, request(method, **given, raw_handle=bytes(63)))
        assert (call.code, "of 64 bytes, and got one of 63" in call.text) == (INVALID, True)
        await answer(session, method, **given, raw_handle=bytes(64))
        shown = (await answer(session, "CudaSharedMemoryStatus")).regions["r"]
        assert (shown.name, shown.device_id, shown.byte_size) == ("r", 1, 64)

    run(check)


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_there_are_no_regions_and_to_unregister_them_is_no_error(kind: str) -> None:
    async def check(session: RpcSession) -> None:
        assert not (await answer(session, f"{kind}SharedMemoryStatus")).regions
        await answer(session, f"{kind}SharedMemoryUnregister", name="any")

    run(check)


def test_every_method_of_the_service_answers() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers |= {"index": [], "load": {}, "unload": {}, "log_settings": {}, "trace_settings": {}}
        for method in methods(INFERENCE):
            if method != "ModelStreamInfer":
                call = await session.unary(method)
                assert call.code in (OK, NOT_FOUND, UNIMPLEMENTED) or method.endswith("MemoryRegister"), method
                assert call.trailers.get("mmsup-code") != "internal"

    run(check)


def test_a_call_that_the_controller_does_not_answer_ends_at_its_deadline() -> None:
    async def check(session: RpcSession) -> None:
        session.router.answers["index"] = asyncio.get_running_loop().create_future()
        call = await session.unary("RepositoryIndex", None, [(b"grpc-timeout", b"20m")])
        assert (call.code, "Request timeout expired" in call.text) == (4, True)

    run(check)


# Health.


@pytest.mark.parametrize("service", ["", INFERENCE])
def test_health_follows_readiness(service: str) -> None:
    async def check(session: RpcSession) -> None:
        for is_ready, status in ((True, SERVING), (False, NOT_SERVING)):
            session.router.status.ready = is_ready
            call = await session.unary(f"{HEALTH}/Check", HEALTH_REQUEST(service=service))
            assert [HEALTH_REPLY.FromString(each).status for each in call.messages()] == [status]

    run(check)


def test_the_health_of_another_service_is_not_found() -> None:
    async def check(session: RpcSession) -> None:
        assert (await session.unary(f"{HEALTH}/Check", HEALTH_REQUEST(service="other"))).code == NOT_FOUND
        watch = await session.open(f"{HEALTH}/Watch")
        await session.message(watch, HEALTH_REQUEST(service="other").SerializeToString(), end=True)
        assert [HEALTH_REPLY.FromString(each).status for each in watch.messages()] == [SERVICE_UNKNOWN]
        assert not watch.is_over

    run(check)


def test_who_watches_is_told_of_each_change_once() -> None:
    async def check(session: RpcSession) -> None:
        watch = await session.open(f"{HEALTH}/Watch")
        await session.message(watch, b"", end=True)
        for is_ready in (True, True, False, False, True):
            session.router.status.ready = is_ready
            session.server.health.on_heartbeat()
        await session.settle()
        found = [HEALTH_REPLY.FromString(each).status for each in watch.messages()]
        assert found == [SERVING, NOT_SERVING, SERVING]
        session.pipe.close()
        await session.settle()
        session.router.status.ready = False
        session.server.health.on_heartbeat()
        assert not session.server.health._watchers

    run(check)


# Reflection.


async def reflected(session: RpcSession, service: str, **fields: str) -> Any:
    """The reply to one question."""
    method = methods(service)["ServerReflectionInfo"]
    call = await session.open(f"{service}/ServerReflectionInfo")
    await session.message(call, method.request(host="here", **fields).SerializeToString(), end=True)
    (found,) = call.messages()
    assert call.code == OK
    made = method.reply.FromString(found)
    assert (made.valid_host, made.original_request.host) == ("here", "here")
    return made


@pytest.mark.parametrize("service", REFLECTIONS)
def test_reflection_lists_the_services_and_gives_files_that_make_a_pool(service: str) -> None:
    async def check(session: RpcSession) -> None:
        listed = await reflected(session, service, list_services="")
        names = [each.name for each in listed.list_services_response.service]
        assert names == sorted((INFERENCE, HEALTH, *REFLECTIONS))
        for name in names:
            pool = descriptor_pool.DescriptorPool()
            found = await reflected(session, service, file_containing_symbol=name)
            for each in reversed(found.file_descriptor_response.file_descriptor_proto):
                pool.Add(descriptor_pb2.FileDescriptorProto.FromString(each))
            assert pool.FindServiceByName(name).methods

    run(check)


@pytest.mark.parametrize("symbol", [f"{INFERENCE}.ModelInfer", "inference.ModelInferRequest", "grpc.health.v1.Health"])
def test_a_file_is_found_by_what_it_defines_and_by_its_name(symbol: str) -> None:
    async def check(session: RpcSession) -> None:
        by_symbol = await reflected(session, REFLECTIONS[1], file_containing_symbol=symbol)
        first = by_symbol.file_descriptor_response.file_descriptor_proto[0]
        name = descriptor_pb2.FileDescriptorProto.FromString(first).name
        by_name = await reflected(session, REFLECTIONS[1], file_by_filename=name)
        assert by_name.file_descriptor_response.file_descriptor_proto[0] == first

    run(check)


@pytest.mark.parametrize(
    "fields",
    [
        {"file_containing_symbol": "no.such"},
        {"file_by_filename": "no.proto"},
        {"all_extension_numbers_of_type": "x"},
        {},
    ],
)
def test_what_reflection_does_not_know_is_an_answer(fields: dict[str, str]) -> None:
    async def check(session: RpcSession) -> None:
        made = await reflected(session, REFLECTIONS[0], **fields)
        assert made.error_response.error_code == NOT_FOUND

    run(check)


def test_several_questions_are_answered_in_one_call() -> None:
    async def check(session: RpcSession) -> None:
        question = methods(REFLECTIONS[0])["ServerReflectionInfo"].request(list_services="x").SerializeToString()
        call = await session.open(f"{REFLECTIONS[0]}/ServerReflectionInfo")
        await session.send(*[data(call.number, framed(question))] * 3, data(call.number, end=True))
        assert (len(call.messages()), call.code) == (3, OK)

    run(check)


def test_tensors_are_in_memory_of_the_client_and_replies_have_an_empty_entry_for_each() -> None:
    async def check(session: RpcSession) -> None:
        with client_region(64) as memory:
            register = {"name": "r", "key": memory.key, "byte_size": 64}
            await answer(session, "SystemSharedMemoryRegister", **register)
            status = await answer(session, "SystemSharedMemoryStatus", name="r")
            assert [(key, each.key, each.byte_size) for key, each in status.regions.items()] == [("r", memory.key, 64)]
            call = await session.unary("SystemSharedMemoryRegister", request("SystemSharedMemoryRegister", **register))
            assert (call.code, call.text) == (INVALID, "shared memory region 'r' already in manager")
            asked = request("ModelInfer", model_name="m")
            asked.inputs.add(name="X", datatype="FP32", shape=[2])
            asked.outputs.add(name="X_out")
            for tensor, offset in ((asked.inputs[0], 0), (asked.outputs[0], 16)):
                tensor.parameters["shared_memory_region"].string_param = "r"
                tensor.parameters["shared_memory_offset"].int64_param = offset
                tensor.parameters["shared_memory_byte_size"].int64_param = 8
            for number in range(3):
                memory.put(np.array([number, 7], dtype=np.float32))
                replied = reply(await session.unary("ModelInfer", asked), "ModelInfer")
                assert list(replied.raw_output_contents) == [b""]
                shown = replied.outputs[0]
                assert (list(shown.shape), shown.parameters["shared_memory_region"].string_param) == ([2], "r")
                assert shown.parameters["shared_memory_byte_size"].int64_param == 8
                assert memory.get(2, 16) == [number, 7]
            call = await session.unary("SystemSharedMemoryStatus", request("SystemSharedMemoryStatus", name="s"))
            assert call.code == NOT_FOUND
            await answer(session, "SystemSharedMemoryUnregister", name="r")
            assert (await session.unary("ModelInfer", asked)).code == INVALID
        session.router.regions.close()

    run(check)
