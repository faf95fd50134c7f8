"""The models of `examples/triton_client_models.py`, asked as the public example clients of Triton ask them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from example_files import example
from harness.rpc_calls import Client, Replies, connected, target, tensor
from harness.server import Server, eventually, serving

pytestmark = pytest.mark.slow
FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
ONES = np.ones((1, 16), np.int32)
VALUES = (11, 7, 5, 3, 2, 0, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    with example("triton_client_models") as models:
        models.write_models(repository, string_ids=True)
    with serving(repository, "--model-control-mode", "explicit", "--load-model", "*", "--id", "triton") as running:
        eventually(lambda: all(each["state"] == "ready" for each in running.status()["models"]), "all are ready")
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with connected(server) as made:
        yield made


def texts(numbers: Any) -> Any:
    return np.array([str(each).encode() for each in numbers.flat], np.object_).reshape(numbers.shape)


def pair(datatype: str, first: Any, second: Any) -> list[Any]:
    return [tensor("INPUT0", datatype, first), tensor("INPUT1", datatype, second)]


def http_pair(library: Any) -> list[Any]:
    made = [library.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    made[0].set_data_from_numpy(FIRST, binary_data=False)
    made[1].set_data_from_numpy(ONES, binary_data=True)
    return made


def is_sum(result: Any) -> bool:
    sums, differences = result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")
    return np.array_equal(sums, FIRST + 1) and np.array_equal(differences, FIRST - 1)


def test_sums_and_differences_over_each_client(server: Server, client: Client) -> None:
    assert is_sum(client.infer("simple", pair("INT32", FIRST, ONES), headers={"test": "1"}))
    replies = Replies()
    client.async_infer("simple", pair("INT32", FIRST, ONES), replies)
    result, error = replies.next()
    assert error is None
    assert is_sum(result)
    host, port = server.address("http")
    with triton_http.InferenceServerClient(f"{host}:{port}") as http:
        assert is_sum(http.infer("simple", http_pair(triton_http), query_params={"test_1": 1}))
        pending = [http.async_infer("simple", http_pair(triton_http)) for _ in range(3)]
        assert all(is_sum(each.get_result()) for each in pending)
        assert is_sum(http.infer("simple", http_pair(triton_http), request_compression_algorithm="gzip"))
    asyncio.run(both_aio(server, f"{host}:{port}"))


async def both_aio(server: Server, http_target: str) -> None:
    async with triton_aio.InferenceServerClient(target(server)) as rpc:
        assert is_sum(await rpc.infer("simple", pair("INT32", FIRST, ONES)))
    async with triton_http_aio.InferenceServerClient(http_target) as http:
        assert is_sum(await http.infer("simple", http_pair(triton_http_aio)))


def test_strings_and_typed_contents(client: Client, server: Server) -> None:
    found = client.infer("simple_string", pair("BYTES", texts(FIRST), texts(ONES)))
    assert np.array_equal(found.as_numpy("OUTPUT0").astype(np.int32), FIRST + 1)
    given = np.array([["null \0 inside", "", "ü"]], np.object_)
    assert [
        each.decode()
        for each in client.infer("simple_identity", [tensor("INPUT0", "BYTES", given)]).as_numpy("OUTPUT0").flat
    ] == list(given.flat)
    request = service_pb2.ModelInferRequest(model_name="simple_int8")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT8", shape=[1, 16]).contents.int_contents.extend(range(16))
    channel = client._client_stub  # the stub of the public messages
    assert isinstance(channel, service_pb2_grpc.GRPCInferenceServiceStub)
    answer = channel.ModelInfer(request)
    assert np.frombuffer(answer.raw_output_contents[0], np.int8).tolist() == [2 * each for each in range(16)]


def one(value: int) -> list[Any]:
    return [tensor("INPUT", "INT32", np.array([[value]], np.int32))]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_sequences_side_by_side_keep_their_states(client: Client, is_streamed: bool) -> None:
    found: dict[str, list[int]] = {}
    replies = Replies()
    if is_streamed:
        client.start_stream(replies)
    for model, sequence in (("simple_sequence", 1000), ("simple_dyna_sequence", 1001), (STRINGS, "1002")):
        for step, value in enumerate(VALUES):
            options = {
                "sequence_id": sequence,
                "sequence_start": step == 0,
                "sequence_end": step == len(VALUES) - 1,
                "request_id": f"{model} {step:02}",
            }
            if is_streamed:
                client.async_stream_infer(model, one(value), **options)
                continue
            result = client.infer(model, one(value), **options)
            found.setdefault(model, []).append(int(result.as_numpy("OUTPUT")[0, 0]))
    if is_streamed:
        client.stop_stream()
        for _ in range(3 * len(VALUES)):
            result, error = replies.next()
            assert error is None, error
            model = result.get_response().id.split()[0]
            found.setdefault(model, []).append(int(result.as_numpy("OUTPUT")[0, 0]))
    sums = np.cumsum(VALUES).tolist()
    assert found == {
        "simple_sequence": [12, *VALUES[1:]],
        "simple_dyna_sequence": [12, *VALUES[1:-1], 1 + 1001],
        STRINGS: [*sums[:-1], sums[-1] + 1002],
    }


STRINGS = "simple_string_dyna_sequence"


def test_a_decoupled_model_answers_as_often_as_it_is_asked_to(client: Client) -> None:
    replies = Replies()
    client.start_stream(replies)
    given = [
        tensor("IN", "INT32", np.arange(5, dtype=np.int32)),
        tensor("DELAY", "UINT32", np.zeros(5, np.uint32)),
        tensor("WAIT", "UINT32", np.zeros(1, np.uint32)),
    ]
    client.async_stream_infer("repeat_int32", given)
    found = [replies.next() for _ in range(5)]
    client.stop_stream()
    assert [int(result.as_numpy("OUT")[0]) for result, _ in found] == list(range(5))


def test_a_model_is_loaded_with_a_part_of_a_configuration_and_unloaded(client: Client) -> None:
    assert client.get_server_metadata().name == "triton"
    assert len(client.get_model_repository_index().models) == 9
    with pytest.raises(triton.InferenceServerException, match="failed to load"):
        client.load_model("simple", config='"parameters": {"config": {{"max_batch_size": "16"}}}')
    client.load_model("simple", config='{"max_batch_size":"16"}')
    assert client.get_model_config("simple").config.max_batch_size == 16
    client.unload_model("simple")
    assert not client.is_model_ready("simple")
    client.load_model("simple")
    with pytest.raises(triton.InferenceServerException, match="failed to load"):
        client.load_model("wrong_model_name")
    assert client.is_server_live()
