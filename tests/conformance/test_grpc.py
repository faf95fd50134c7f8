"""tritonclient and the public gRPC libraries, unchanged, against one server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc

from engines.build import write_fault_model, write_identity_onnx, write_python
from harness.rpc_calls import Client, Replies, fault_inputs, is_right, target, tensor
from harness.server import Server, eventually, serving
from mmsup.ipc.specs import TensorSpec
from mmsup.ipc.tensors.datatypes import ITEM_BYTES

pytestmark = pytest.mark.slow
MIB = 1 << 20
LIMIT = 64 * MIB

EVERY = (
    "class Model:\n    def infer(self, inputs):\n"
    "        return {'y' + name[1:]: value for name, value in inputs.items()}\n"
)
ADD = (
    "class Model:\n    def infer(self, inputs):\n"
    "        return {'total': inputs['x'] + inputs['y'], 'difference': inputs['x'] - inputs['y']}\n"
)
SAME = "class Model:\n    def infer(self, inputs):\n        return {'y': inputs['x']}\n"


@pytest.fixture(scope="module", params=["own", "grpcio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    inputs = tuple(TensorSpec(f"x_{each}", each, (-1,), optional=True) for each in ITEM_BYTES)
    outputs = tuple(TensorSpec(f"y_{each}", each, (-1,)) for each in ITEM_BYTES)
    write_python(repository, "every", EVERY, inputs, outputs)
    two = (TensorSpec("x", "FP32", (-1,)), TensorSpec("y", "FP32", (-1,)))
    results = (TensorSpec("total", "FP32", (-1,)), TensorSpec("difference", "FP32", (-1,)))
    write_python(repository, "add", ADD, two, results, 4)
    write_identity_onnx(repository, "scalar", "FP64", ())
    write_python(repository, "bytes", SAME, (TensorSpec("x", "UINT8", (-1,)),), (TensorSpec("y", "UINT8", (-1,)),))
    write_fault_model(repository, "fault")
    write_fault_model(repository, "asleep", load="on-demand")
    unix = str(tmp_path_factory.mktemp("sockets") / "grpc.sock")
    with serving(repository, "--grpc-unix", unix, "--grpc-front", request.param) as running:
        eventually(lambda: running.status()["grpc_front"]["serves"], "gRPC is served")
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with triton.InferenceServerClient(target(server)) as made:
        yield made


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(target(server)) as made:
        yield made


def refused(code: str, call: Any, *arguments: Any, **options: Any) -> str:
    """The text of the error that a call ends in."""
    with pytest.raises(triton.InferenceServerException) as caught:
        call(*arguments, **options)
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    return str(caught.value.message())


VALUES: dict[str, Any] = {  # arrays of several element types
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, (1 << 32) - 1], np.uint32),
    "UINT64": np.array([0, (1 << 64) - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-32768, 32767], np.int16),
    "INT32": np.array([-(1 << 31), (1 << 31) - 1], np.int32),
    "INT64": np.array([-(1 << 63), (1 << 63) - 1], np.int64),
    "FP16": np.array([0.5, 65504, -0.0], np.float16),
    "FP32": np.array([1.5, np.inf, 3e-40], np.float32),
    "FP64": np.array([0.1, -np.inf, 5e-324], np.float64),
    "BYTES": np.array(["grüße".encode(), b"", b"\0 too"], np.object_),
}


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("size", [None, 0])
def test_every_datatype_comes_back_as_it_went(client: Client, datatype: str, size: int | None) -> None:
    value = VALUES[datatype][:size]
    wanted = [triton.InferRequestedOutput(f"y_{datatype}")]
    found = client.infer("every", [tensor(f"x_{datatype}", datatype, value)], outputs=wanted)
    answer = found.as_numpy(f"y_{datatype}")
    assert (answer.shape, answer.dtype, answer.tolist()) == (value.shape, value.dtype, value.tolist())


def test_bf16_comes_back_bit_by_bit(client: Client) -> None:
    value = np.array([1.0, -2.5, 3e38], np.float32).astype(ml_dtypes.bfloat16).tobytes()
    wanted = [triton.InferRequestedOutput("y_BF16")]
    found = client.infer("every", [tensor("x_BF16", "BF16", value, [3])], outputs=wanted)
    assert found.get_response().raw_output_contents[0] == value
    assert found.get_output("y_BF16").datatype == "BF16"


def test_typed_contents_are_answered_raw(channel: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="add", id="t")
    for name in ("x", "y"):
        request.inputs.add(name=name, datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1.5, 2.0])
    found = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert [each.name for each in found.outputs] == ["total", "difference"]
    assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == [3.0, 4.0]


def test_a_tensor_of_rank_0(client: Client) -> None:
    found = client.infer("scalar", [tensor("x", "FP64", np.array(2.5))])
    assert (found.as_numpy("y").shape, float(found.as_numpy("y"))) == ((), 2.5)


def rows(*values: float, batch: int = 1) -> Any:
    return np.array([values] * batch, np.float32)


def add(client: Client, batch: int = 1, **options: Any) -> Any:
    given = [tensor("x", "FP32", rows(1, 2, batch=batch)), tensor("y", "FP32", rows(3, 5, batch=batch))]
    return client.infer("add", given, **options)


def test_several_inputs_and_outputs_with_a_batch(client: Client) -> None:
    found = add(client, 3, request_id="seven", model_version="1")
    assert (found.get_response().id, found.get_response().model_version) == ("seven", "1")
    assert found.as_numpy("total").tolist() == [[4.0, 7.0]] * 3
    assert found.as_numpy("difference").tolist() == [[-2.0, -3.0]] * 3


def test_outputs_come_in_the_order_in_which_they_were_asked_for(client: Client) -> None:
    for names in (["difference", "total"], ["total"]):
        found = add(client, outputs=[triton.InferRequestedOutput(name) for name in names])
        assert [each.name for each in found.get_response().outputs] == names


def test_classification(client: Client) -> None:
    found = add(client, outputs=[triton.InferRequestedOutput("total", class_count=1)])
    assert found.as_numpy("total").tolist() == [[b"7.000000:1"]]


def test_the_rules_of_a_request_are_those_of_http(client: Client) -> None:
    text = refused("INVALID_ARGUMENT", add, client, 5)
    assert text.startswith("inference request batch-size must be >= 1 and <= 4 for 'add'")
    x, y = tensor("x", "FP32", rows(1)), tensor("y", "FP32", rows(1))
    assert "missing required input(s) ['y']" in refused("INVALID_ARGUMENT", client.infer, "add", [x])
    wrong = tensor("y", "INT32", np.array([[1]], np.int32))
    text = refused("INVALID_ARGUMENT", client.infer, "add", [x, wrong])
    assert "data-type is 'INT32', but model 'add' expects 'FP32'" in text
    other = tensor("z", "FP32", rows(1))
    assert "unexpected inference input 'z'" in refused("INVALID_ARGUMENT", client.infer, "add", [x, y, other])
    output = [triton.InferRequestedOutput("none")]
    assert "unexpected inference output" in refused("INVALID_ARGUMENT", client.infer, "add", [x, y], outputs=output)
    text = refused("NOT_FOUND", client.infer, "no", [x])
    assert text.startswith("Request for unknown model: 'no' is not found")
    assert "version 9 is not found" in refused("NOT_FOUND", client.infer, "add", [x, y], "9")


def test_parameters_priority_and_headers_are_taken(client: Client) -> None:
    found = add(client, priority=1, parameters={"word": "é", "count": 3}, headers={"x-any": "thing"})
    assert found.as_numpy("total").tolist() == [[4.0, 7.0]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_calls(client: Client, algorithm: str) -> None:
    value = np.zeros(100_000, np.uint8)
    found = client.infer("bytes", [tensor("x", "UINT8", value)], compression_algorithm=algorithm)
    assert np.array_equal(found.as_numpy("y"), value)


def test_a_large_message_is_served_and_one_beyond_the_limit_is_exhausted(client: Client) -> None:
    value = np.arange(LIMIT - 200, dtype=np.uint8)
    found = client.infer("bytes", [tensor("x", "UINT8", value)])
    assert np.array_equal(found.as_numpy("y"), value)
    text = refused("RESOURCE_EXHAUSTED", client.infer, "bytes", [tensor("x", "UINT8", np.zeros(LIMIT, np.uint8))])
    assert f"exceeds the maximum allowed {LIMIT} bytes" in text


def test_an_error_of_a_model_has_its_text_and_nothing_of_the_machine(client: Client, server: Server) -> None:
    text = refused("INTERNAL", client.infer, "fault", fault_inputs("raise"))
    assert "asked to raise" in text
    assert str(server.repository) not in text
    assert "Traceback" not in text


def test_deadlines_of_call_and_request_are_kept_and_the_worker_lives_on(client: Client, server: Server) -> None:
    pid = server.pid("fault")
    client_side = refused("DEADLINE_EXCEEDED", client.infer, "fault", fault_inputs("sleep", 0.3), client_timeout=0.05)
    assert client_side
    text = refused("DEADLINE_EXCEEDED", client.infer, "fault", fault_inputs("sleep", 0.3), timeout=50_000)
    assert "Request timeout expired" in text
    assert is_right(client.infer("fault", fault_inputs(), client_timeout=30.0, timeout=30_000_000))
    assert server.pid("fault") == pid


def test_a_call_that_is_cancelled_leaves_nothing_behind(client: Client, server: Server) -> None:
    over = threading.Event()
    called = client.async_infer("fault", fault_inputs("hold"), lambda result, error: over.set())
    eventually(lambda: server.gauge("mmsup_requests_open", model="fault") == 1, "the call has begun")
    called.cancel()
    assert over.wait(20)
    eventually(lambda: server.gauge("mmsup_requests_open", model="fault") == 0, "the call is over")
    (server.repository / "fault" / "1" / "go").touch()
    assert is_right(client.infer("fault", fault_inputs()))


def test_calls_side_by_side_get_their_own_answers(client: Client) -> None:
    replies = Replies()
    for number in range(50):
        given = [tensor("x", "FP32", rows(number)), tensor("y", "FP32", rows(1))]
        client.async_infer("add", given, replies, request_id=str(number))
    found = {}
    for _ in range(50):
        result, error = replies.next()
        assert error is None
        found[int(result.get_response().id)] = float(result.as_numpy("total")[0, 0])
    assert found == {number: number + 1.0 for number in range(50)}


def test_the_asynchronous_client(server: Server) -> None:
    async def calls() -> None:
        async with triton_aio.InferenceServerClient(target(server)) as client:
            assert await client.is_server_ready()
            x, y = tensor("x", "FP32", rows(1, 2)), tensor("y", "FP32", rows(3, 5))
            results = await asyncio.gather(*[client.infer("add", [x, y], request_id=str(each)) for each in range(8)])
            assert [each.get_response().id for each in results] == [str(each) for each in range(8)]

            async def requests() -> Any:
                for each in range(5):
                    yield {"model_name": "add", "inputs": [x, y], "request_id": str(each)}

            found = [each async for each in client.stream_infer(requests())]
            assert {result.get_response().id for result, _ in found} == {str(each) for each in range(5)}
            assert not any(error for _, error in found)

    asyncio.run(calls())


# Streams.


def test_a_stream_answers_many_requests_and_those_of_one_model_in_their_order(client: Client) -> None:
    replies = Replies()
    client.start_stream(replies)
    for number in range(100):
        given = [tensor("x", "FP32", np.array([number], np.float32))]
        client.async_stream_infer("fault", given, request_id=str(number))
    client.stop_stream()
    found = [replies.next() for _ in range(100)]
    assert [error for _, error in found if error] == []
    answers = {int(result.get_response().id): float(result.as_numpy("y")[0]) for result, _ in found}
    assert answers == {number: float(number) for number in range(100)}
    assert replies.count == 0


def test_errors_in_a_stream_leave_it_open(client: Client) -> None:
    replies = Replies()
    client.start_stream(replies)
    client.async_stream_infer("no", fault_inputs(), request_id="a")
    assert "Request for unknown model" in replies.next()[1].message()
    client.async_stream_infer("fault", fault_inputs("raise"), request_id="b")
    assert "asked to raise" in replies.next()[1].message()
    client.async_stream_infer("fault", fault_inputs(), request_id="c")
    result, error = replies.next()
    assert (error, result.get_response().id) == (None, "c")
    client.stop_stream()


def test_a_stream_of_a_client_that_wants_statuses_ends_with_that_of_the_error(client: Client) -> None:
    replies = Replies()
    client.start_stream(replies, headers={"triton_grpc_error": "true"})
    client.async_stream_infer("no", fault_inputs())
    _, error = replies.next()
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream(cancel_requests=True)


def test_a_stream_that_is_cancelled_cancels_what_runs_in_it(client: Client, server: Server) -> None:
    client.start_stream(Replies())
    client.async_stream_infer("fault", fault_inputs("hold"))
    eventually(lambda: server.gauge("mmsup_requests_open", model="fault") == 1, "the request has begun")
    client.stop_stream(cancel_requests=True)
    eventually(lambda: server.gauge("mmsup_requests_open", model="fault") == 0, "the request is over")
    (server.repository / "fault" / "1" / "go").touch()
    assert is_right(client.infer("fault", fault_inputs()))


# The other methods.


def test_health_and_metadata(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add", "1")
    assert not client.is_model_ready("no")
    assert client.get_server_metadata().extensions
    metadata = client.get_model_metadata("add", as_json=True)
    assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": ["-1", "-1"]}
    config = client.get_model_config("add").config
    assert (config.name, config.max_batch_size, config.backend) == ("add", 4, "python")
    assert [(each.name, list(each.dims)) for each in config.input] == [("x", [-1]), ("y", [-1])]


def test_statistics_grow_with_each_call(client: Client) -> None:
    def counted() -> Any:
        (found,) = client.get_inference_statistics("add").model_stats
        return found

    add(client)
    before = counted()
    add(client, 3)
    after = counted()
    assert after.inference_count == before.inference_count + 3
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert {each.name for each in client.get_inference_statistics().model_stats} >= {"add", "fault"}


def test_models_are_listed_unloaded_and_loaded(client: Client) -> None:
    index = {each.name: each.state for each in client.get_model_repository_index().models}
    assert index["scalar"] == "READY"
    client.unload_model("scalar")
    assert not client.is_model_ready("scalar")
    client.load_model("scalar")
    assert client.is_model_ready("scalar")
    assert "failed to load 'nothing'" in refused("NOT_FOUND", client.load_model, "nothing")
    assert "files may not be sent" in refused(
        "PERMISSION_DENIED", client.load_model, "scalar", config="{}", files={"file:1/model.py": b""}
    )


def test_regions_of_shared_memory_are_none_at_first_and_must_exist(client: Client) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    assert not client.get_system_shared_memory_status().regions
    assert not client.get_cuda_shared_memory_status().regions
    assert refused("INVALID_ARGUMENT", client.register_system_shared_memory, "r", "/mmsup_no_such_region", 64)


def test_log_and_trace_settings_are_changed_and_shown(client: Client) -> None:
    shown = client.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601", "log_info": False}).settings
    assert shown == client.get_log_settings().settings
    assert (shown["log_verbose_level"].uint32_param, shown["log_format"].string_param) == (1, "ISO8601")
    assert (shown["log_info"].bool_param, shown["log_error"].bool_param) == (False, True)
    assert refused("INVALID_ARGUMENT", client.update_log_settings, {"log_file": "x"})
    client.update_log_settings({"log_verbose_level": 0, "log_info": True})
    traced = client.update_trace_settings("scalar", {"trace_level": ["TIMESTAMPS"], "trace_rate": "5"}).settings
    assert (list(traced["trace_level"].value), list(traced["trace_rate"].value)) == (["TIMESTAMPS"], ["5"])
    assert list(client.get_trace_settings().settings["trace_rate"].value) == ["1000"]
    cleared = client.update_trace_settings("scalar", {"trace_level": None, "trace_rate": None}).settings
    assert cleared == client.get_trace_settings().settings
    assert refused("NOT_FOUND", client.get_trace_settings, "nothing")


def test_the_first_call_of_a_model_that_is_asleep_says_that_it_was_cold(channel: Any) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name="asleep")
    request.inputs.add(name="x", datatype="FP32", shape=[1])
    request.raw_input_contents.append(bytes(4))
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="asleep")).ready
    cold, warm = [stub.ModelInfer.with_call(request)[1].initial_metadata() for _ in range(2)]
    assert ("x-mmsup-cold", "1") in [(each.key, each.value) for each in cold]
    assert "x-mmsup-cold" not in [each.key for each in warm]


def test_a_method_that_is_not_there_is_unimplemented(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_unix_socket_serves_too(server: Server) -> None:
    with triton.InferenceServerClient(f"unix:{server.status()['addresses']['grpc_unix']}") as client:
        assert add(client).as_numpy("total").tolist() == [[4.0, 7.0]]


def test_health_of_the_public_library(channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == 1
    watch.cancel()


def test_reflection_of_the_public_library_and_its_newer_name(channel: Any) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "inference.GRPCInferenceService" in database.get_services()
    assert database.FindFileContainingSymbol("inference.ModelInferRequest").package == "inference"
    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (found,) = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert "grpc.health.v1.Health" in [each.name for each in found.list_services_response.service]


def test_an_idle_client_stays_connected(server: Server) -> None:
    """Its pings are answered, and not counted as a flood."""
    options = triton.KeepAliveOptions(keepalive_time_ms=100, keepalive_timeout_ms=2000, http2_max_pings_without_data=0)
    options.keepalive_permit_without_calls = True
    with triton.InferenceServerClient(target(server), keepalive_options=options) as client:
        assert client.is_server_live()
        time.sleep(0.5)
        assert client.is_server_live()
