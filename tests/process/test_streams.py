"""Models that answer many times, as clients see them: generate, generate_stream, and tritonclient's streams."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from engines.build import write_identity_onnx, write_python
from harness.rpc_calls import Replies, connected, tensor
from harness.server import Server, eventually, serving
from harness.stream_reader import StreamReader
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "streaming_model"
LARGE = """
import numpy as np

class Model:
    def infer(self, inputs):
        for index in range(int(inputs["n"][0])):
            yield {"y": np.full(int(inputs["size"][0]), index, np.float32)}
"""
LATER = """
import asyncio

class Model:
    async def infer(self, inputs):
        await asyncio.sleep(0.01)
        return {"y": inputs["x"] * 2}
"""
Document = Any  # JSON


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    for name in ("repeat_int32", "words"):
        shutil.copytree(EXAMPLES / name, repository / name)
    shutil.copytree(EXAMPLES.parent / "sequences" / "accumulator", repository / "accumulator")
    grouped = {"group": "together"}
    number = TensorSpec("n", "INT32", (1,)), TensorSpec("size", "INT32", (1,))
    write_python(repository, "large", LARGE, number, (TensorSpec("y", "FP32", (-1,)),), settings=grouped)
    numbers = (TensorSpec("x", "INT32", (-1,)),), (TensorSpec("y", "INT32", (-1,)),)
    write_python(repository, "later", LATER, *numbers, settings=grouped)
    write_identity_onnx(repository, "plain", "FP32", dims=[2], max_batch=4)
    with serving(repository) as running:
        yield running


def post(server: Server, path: str, document: Document) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*server.address(), timeout=60)
    try:
        connection.request("POST", f"/v2/models/{path}", json.dumps(document))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Document]:
    assert body.endswith(b"\n\n") or not body
    return [json.loads(each.removeprefix("data: ")) for each in body.decode().split("\n\n")[:-1]]


def test_each_response_is_an_event(server: Server) -> None:
    document = {"prompt": "to be or", "max_words": 4, "id": "mine"}
    status, headers, body = post(server, "words/generate_stream", document)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
    found = events(body)
    assert [each["word"] for each in found] == ["to", "be", "or", "to"]
    assert found[0] == {"id": "mine", "model_name": "words", "model_version": "1", "word": "to"}
    assert post(server, "words/versions/1/generate_stream", {"prompt": ""})[::2] == (200, b"")


def test_generate_wants_exactly_one_response(server: Server) -> None:
    status, _, body = post(server, "words/generate", {"prompt": "hello", "parameters": {"max_words": [1]}})
    assert (status, json.loads(body)["word"]) == (200, "hello")
    for prompt in ("", "a b c"):
        status, _, body = post(server, "words/generate", {"prompt": prompt})
        assert status == 400
        assert json.loads(body)["error"].startswith("generate expects model to produce exactly 1 response")


def test_models_that_answer_once_have_both_too(server: Server) -> None:
    status, _, body = post(server, "plain/generate", {"x": [[1, 2], [3, 4]]})
    assert (status, json.loads(body)) == (200, {"model_name": "plain", "model_version": "1", "y": [1.0, 2.0, 3.0, 4.0]})
    assert events(post(server, "plain/generate_stream", {"x": [1, 2]})[2])[0]["y"] == [1.0, 2.0]
    assert json.loads(post(server, "later/generate", {"x": 4})[2])["y"] == 8
    assert json.loads(post(server, "later/generate", {"x": [4, 5]})[2])["y"] == [8, 10]


@pytest.mark.parametrize(
    ("path", "document", "status", "text"),
    [
        ("words/generate_stream", [], 400, "not an object"),
        ("words/generate_stream", {}, 400, "missing required input"),
        ("words/generate_stream", {"prompt": {"a": 1}}, 400, "prompt"),
        ("words/generate_stream", {"prompt": "a", "other": [1]}, 400, "parameter 'other'"),
        ("words/generate_stream", {"prompt": "a", "parameters": 3}, 400, "'parameters' must be an object"),
        ("plain/generate_stream", {"x": [1, 2, 3]}, 400, "3 elements do not make up"),
        ("plain/generate", {"x": [[1, 2], [3]]}, 400, "ragged"),
        ("absent/generate", {"x": 1}, 404, "Request for unknown model"),
        ("words/infer", {"inputs": []}, 501, "generate_stream"),
    ],
)
def test_a_fault_before_the_first_response_has_its_status(
    server: Server, path: str, document: Document, status: int, text: str
) -> None:
    found, headers, body = post(server, path, document)
    assert (found, headers["Content-Type"]) == (status, "application/json"), body
    assert text in json.loads(body)["error"]


def test_large_responses_come_whole_and_in_order(server: Server) -> None:
    found = events(post(server, "large/generate_stream", {"n": 20, "size": 5000})[2])
    assert [(each["y"][0], len(each["y"])) for each in found] == [(index, 5000) for index in range(20)]
    with connected(server) as client:
        replies = Replies()
        client.start_stream(replies)
        inputs = [tensor("n", "INT32", np.array([3], np.int32)), tensor("size", "INT32", np.array([1 << 20], np.int32))]
        client.async_stream_infer("large", inputs)
        for index in range(3):
            result, error = replies.next()
            assert error is None
            assert np.array_equal(result.as_numpy("y"), np.full(1 << 20, index, np.float32))
        client.stop_stream()


def repeat_inputs(values: list[int], delay_ms: int = 0) -> list[Any]:
    return [
        tensor("IN", "INT32", np.array(values, np.int32)),
        tensor("DELAY", "UINT32", np.full(len(values), delay_ms, np.uint32)),
        tensor("WAIT", "UINT32", np.array([0], np.uint32)),
    ]


def test_a_decoupled_model_answers_a_stream_of_grpc_many_times(server: Server) -> None:
    with connected(server) as client:
        replies = Replies()
        client.start_stream(replies)
        client.async_stream_infer("repeat_int32", repeat_inputs([4, 2, 0, 1]), request_id="a")
        found = [replies.next() for _ in range(4)]
        assert [(each.as_numpy("OUT")[0], each.as_numpy("IDX")[0]) for each, _ in found] == [
            (4, 0),
            (2, 1),
            (0, 2),
            (1, 3),
        ]
        shown = found[0][0].get_response()
        assert shown.id == "a"
        assert not shown.parameters["triton_final_response"].bool_param
        assert shown.parameters["triton_final_response"].WhichOneof("parameter_choice") == "bool_param"
        client.async_stream_infer("repeat_int32", repeat_inputs([]), request_id="b", enable_empty_final_response=True)
        result, error = replies.next()
        assert error is None
        final = result.get_response()
        assert (final.id, len(final.outputs)) == ("b", 0)
        assert final.parameters["triton_final_response"].bool_param
        client.stop_stream()
        assert replies.count == 0


def test_streams_of_one_call_run_beside_each_other_and_an_error_ends_only_its_own(server: Server) -> None:
    with connected(server) as client:
        replies = Replies()
        client.start_stream(replies)
        client.async_stream_infer("repeat_int32", repeat_inputs([1] * 3, 20), request_id="slow")
        bad = repeat_inputs([1, 2])
        bad[1] = tensor("DELAY", "UINT32", np.array([0], np.uint32))
        client.async_stream_infer("repeat_int32", bad, request_id="bad")
        client.async_stream_infer("repeat_int32", repeat_inputs([1, 2]), request_id="quick")
        order: list[str] = []
        for _ in range(7):
            result, error = replies.next()
            order.append("error" if error else result.get_response().id)
        assert sorted(order) == ["bad", "error", "quick", "quick", "slow", "slow", "slow"]
        assert order[-1] == "slow"
        client.stop_stream()


def test_one_reply_is_not_enough_for_a_decoupled_model_over_grpc(server: Server) -> None:
    with connected(server) as client, pytest.raises(triton.InferenceServerException) as caught:
        client.infer("repeat_int32", repeat_inputs([1]))
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert "ModelStreamInfer" in caught.value.message()


def test_a_cancelled_stream_leaves_nothing_open(server: Server) -> None:
    with connected(server) as client:
        replies = Replies()
        client.start_stream(replies)
        client.async_stream_infer("repeat_int32", repeat_inputs([1] * 1000, 5))
        replies.next()
        client.stop_stream(cancel_requests=True)
    eventually(lambda: server.gauge("mmsup_requests_open", model="repeat_int32") == 0, "nothing is open")


def test_configuration_statistics_and_metrics_tell_of_streams(server: Server) -> None:
    http = server.http()
    assert http.json("GET", "/v2/models/words/config")[1]["model_transaction_policy"] == {"decoupled": True}
    before = http.json("GET", "/v2/models/words/stats")[1]["model_stats"][0]
    post(server, "words/generate_stream", {"prompt": "a b", "max_words": 2})
    after = http.json("GET", "/v2/models/words/stats")[1]["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    stats = after["response_stats"]
    known = before["response_stats"]
    for place, member in (("0", "success"), ("1", "success"), ("2", "empty_response")):
        was = known.get(place, {}).get(member, {"count": 0})["count"]
        assert stats[place][member]["count"] == was + 1, (place, member)
    _, _, page = http.send("GET", "/metrics")
    http.close()
    pattern = rb'nv_inference_first_response_histogram_ms_count\{model="words",version="1"\} (\d+)'
    (counted,) = re.findall(pattern, page)
    assert int(counted) == stats["0"]["success"]["count"]


def test_a_model_that_is_unloaded_finishes_its_streams(server: Server) -> None:
    slow = {"IN": list(range(20)), "DELAY": [20] * 20, "WAIT": 0}
    with StreamReader(server, "repeat_int32/generate_stream", slow) as reader:
        assert reader.next()["OUT"] == 0
        server.ctl("unload", name="repeat_int32")
        assert post(server, "repeat_int32/generate_stream", slow)[0] == 404
        assert [each["OUT"] for each in reader.until_end()] == list(range(1, 20))
    server.ctl("load", name="repeat_int32")


def test_generate_goes_on_with_a_sequence(server: Server) -> None:
    found: list[int] = []
    for step, value in enumerate((5, 6, 7)):
        flags = {"sequence_id": 7, "sequence_start": step == 0, "sequence_end": step == 2}
        status, _, body = post(server, "accumulator/generate", {"INPUT": value, **flags})
        assert status == 200, body
        found.append(json.loads(body)["OUTPUT"])
    assert found == [5, 11, 18]
