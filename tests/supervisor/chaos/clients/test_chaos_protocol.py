"""Requests and replies of the Open Inference Protocol, as the load generator builds and parses them."""

from __future__ import annotations

import json
import struct

import pytest

from mmsup.supervisor.chaos.clients.http_client import HttpReply
from mmsup.supervisor.chaos.clients.payload import make_payload
from mmsup.supervisor.chaos.clients.protocol import BINARY_MIN_VALUES, FaultCommand, V2Adapter

SMALL, LARGE = make_payload(1, 4, 8), make_payload(1, 8, BINARY_MIN_VALUES)


def test_a_small_payload_goes_as_json_and_a_large_one_as_bytes() -> None:
    small, large = V2Adapter().build_request("a b", SMALL, None), V2Adapter().build_request("m", LARGE, None)
    assert small.path == "/v2/models/a%20b/infer"
    assert json.loads(small.body)["inputs"][0]["data"] == SMALL.values.tolist()
    length = int(dict(large.headers)["Inference-Header-Content-Length"])
    assert large.body[length:] == LARGE.data
    assert json.loads(large.body[:length])["inputs"][0]["parameters"] == {"binary_data_size": len(LARGE.data)}


def test_half_of_the_small_ones_go_as_bytes_and_half_with_an_id() -> None:
    calls = [V2Adapter().build_request("m", make_payload(1, number, 8), None) for number in range(4)]
    assert ["Inference-Header-Content-Length" in dict(each.headers) for each in calls] == [False, False, True, True]
    assert [b'"id": "chaos"' in each.body for each in calls] == [False, True, False, True]


def test_a_model_with_a_batch_axis_gets_one_row() -> None:
    adapter = V2Adapter(has_batch_axis=lambda name: name == "batched")
    for model, shape in (("batched", [1, 8]), ("single", [8])):
        assert json.loads(adapter.build_request(model, SMALL, None).body)["inputs"][0]["shape"] == shape


def test_a_server_without_the_extension_gets_json_whatever_the_size() -> None:
    call = V2Adapter(binary=False).build_request("m", LARGE, None)
    assert json.loads(call.body)["inputs"][0]["data"] == LARGE.values.tolist()


def test_a_fault_command_is_two_more_inputs() -> None:
    (_, mode, amount) = json.loads(V2Adapter().build_request("m", SMALL, FaultCommand("exit", 3)).body)["inputs"]
    assert (mode["data"], amount["data"]) == (["exit"], [3])


def test_an_ensemble_gets_all_inputs_with_a_command_that_does_nothing() -> None:
    adapter = V2Adapter(is_ensemble=lambda name: name == "ensemble")
    (_, mode, amount) = json.loads(adapter.build_request("ensemble", SMALL, None).body)["inputs"]
    assert (mode["data"], amount["data"]) == (["ok"], [0])
    assert len(json.loads(adapter.build_request("other", SMALL, None).body)["inputs"]) == 1


def test_an_answer_in_json_is_read() -> None:
    outputs = [{"name": "y", "data": SMALL.values.tolist()}, {"name": "life", "data": [2, 77]}]
    answer = V2Adapter().parse_reply(HttpReply(200, {}, json.dumps({"outputs": outputs}).encode()))
    assert (answer.data, answer.revision, answer.pid) == (SMALL.data, 2, 77)


def test_an_answer_in_bytes_is_read() -> None:
    outputs = [
        {"name": "life", "parameters": {"binary_data_size": 16}},
        {"name": "y", "parameters": {"binary_data_size": len(LARGE.data)}},
    ]
    head = json.dumps({"outputs": outputs}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = V2Adapter().parse_reply(HttpReply(200, headers, head + struct.pack("<2q", 3, 78) + LARGE.data))
    assert (answer.data, answer.revision, answer.pid) == (LARGE.data, 3, 78)


def test_an_error_keeps_its_code_or_its_status() -> None:
    ours = V2Adapter().parse_reply(HttpReply(503, {}, b'{"error": "it is gone", "code": "worker_crashed"}'))
    assert (ours.data, ours.code, ours.text) == (None, "worker_crashed", "it is gone")
    assert V2Adapter().parse_reply(HttpReply(500, {}, b'{"error": "it is gone"}')).code == "http_500"
    assert V2Adapter().parse_reply(HttpReply(502, {}, b"<html>")).code == "http_502"
    assert V2Adapter().parse_reply(HttpReply(500, {}, b"[]")).code == "http_500"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        ({}, b"[1]"),
        ({}, b'{"outputs": []}'),
        ({}, b'{"outputs": [{"name": "y", "data": ["a"]}]}'),
        ({"inference-header-content-length": "x"}, b"{}"),
        ({}, b'{"outputs": [{"name": "y", "data": [1e99]}]}'),
    ],
)
def test_a_reply_that_cannot_be_read_is_an_error_and_no_exception(headers: dict[str, str], body: bytes) -> None:
    answer = V2Adapter().parse_reply(HttpReply(200, headers, body))
    assert answer.data is None or answer.data == struct.pack("<f", float("inf"))
    assert answer.code in ("unreadable", "")


def streamed(*events: str) -> HttpReply:
    body = "".join(f"data: {each}\n\n" for each in events).encode()
    return HttpReply(200, {"content-type": "text/event-stream; charset=utf-8"}, body)


def test_the_parts_of_a_stream_are_one_answer_and_an_error_is_its_end() -> None:
    adapter = V2Adapter(is_streamed=lambda name: name == "s")
    call = adapter.build_request("s", SMALL, FaultCommand("raise"))
    assert call.path == "/v2/models/s/generate_stream"
    assert json.loads(call.body)["mode"] == "raise"
    values = SMALL.values.tolist()
    whole = adapter.parse_reply(
        streamed(
            json.dumps({"y": values[:3]}), json.dumps({"y": values[3]}), json.dumps({"y": values[4:], "life": [2, 9]})
        )
    )
    assert (whole.data, whole.revision, whole.pid) == (SMALL.data, 2, 9)
    failed = adapter.parse_reply(streamed('{"y": 1}', '{"error": "it died", "code": "worker_crashed"}'))
    assert (failed.data, failed.code, failed.text) == (None, "worker_crashed", "it died")
    after_error = streamed('{"error": "x", "code": "worker_crashed"}', '{"y": 1}')
    cut = HttpReply(200, after_error.headers, b'data: {"y": 1}\n')
    for wrong in (after_error, cut, streamed()):
        assert adapter.parse_reply(wrong).code == "unreadable"
