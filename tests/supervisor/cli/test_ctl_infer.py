from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mmsup.supervisor.cli.control_client import ServerRefused
from mmsup.supervisor.cli.ctl_infer import InferenceClient, build_request, fit_shape, flatten, model_path, nested_shape

METADATA = {
    "name": "m",
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "text", "datatype": "BYTES", "shape": [1]},
    ],
}


@pytest.mark.parametrize(
    ("value", "shape"),
    [(3, []), ([], [0]), ([1, 2], [2]), ([[1, 2, 3], [4, 5, 6]], [2, 3]), ([[[]]], [1, 1, 0]), ("ab", [])],
)
def test_the_shape_follows_the_nesting(value: object, shape: list[int]) -> None:
    assert nested_shape(value, "x") == shape


@pytest.mark.parametrize("value", [[[1], [2, 3]], [1, [2]], [[[1]], [[1, 2]]]])
def test_ragged_lists_are_refused_by_the_name_of_their_input(value: object) -> None:
    with pytest.raises(ServerRefused, match="'x'"):
        nested_shape(value, "x")


@pytest.mark.parametrize(
    ("nested", "declared", "sent"),
    [
        ([2, 4], [-1, 4], [2, 4]),
        ([3, 4], [2, 4], [3, 4]),
        ([4], [-1, 4], [1, 4]),
        ([], [1], [1]),
        ([], [-1], [1]),
        ([], [], []),
        ([8], [-1, 4], [2, 4]),
        ([12], [2, -1], [2, 6]),
        ([7], [-1, 4], [7]),
        ([8], [-1, -1], [1, 8]),
        ([2, 2, 2], [4], [2, 2, 2]),
        ([6], [-1, 0], [6]),
    ],
)
def test_a_shape_is_completed_where_only_one_can_be_meant(
    nested: list[int], declared: list[int], sent: list[int]
) -> None:
    assert fit_shape(nested, declared) == sent


def test_elements_go_row_by_row() -> None:
    assert flatten([[1, 2], [3, [4]]]) == [1, 2, 3, 4]
    assert flatten("word") == ["word"]


def test_a_request_takes_datatypes_from_the_model() -> None:
    assert build_request({"x": [1, 2, 3, 4], "text": "hi"}, METADATA) == {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]},
            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hi"]},
        ]
    }


def test_an_unknown_input_is_answered_with_those_there_are() -> None:
    with pytest.raises(ServerRefused, match="no input 'y'; it has 'x', 'text'"):
        build_request({"y": 1}, METADATA)


def test_names_cannot_leave_their_place_in_the_path() -> None:
    assert model_path("../v2", "") == "/v2/models/..%2Fv2"
    assert model_path("m", "2") == "/v2/models/m/versions/2"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        replies: dict[str, tuple[int, bytes]] = {
            "/ok": (200, b'{"name": "m"}'),
            "/refused": (503, b'{"error": "m is loading", "code": "model_loading", "retryable": true}'),
            "/html": (502, b"<html>"),
            "/list": (200, b"[]"),
        }
        status, body = replies[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_door_hands_on_what_the_server_says(address: str) -> None:
    for path, code, text in (("/refused", "model_loading", "m is loading"), ("/html", "502", "without JSON")):
        door = InferenceClient(address, 5)
        with pytest.raises(ServerRefused, match=text) as caught:
            door.request("GET", path)
        assert caught.value.code == code
        door.close()
    door = InferenceClient(address, 5)
    assert door.request("GET", "/ok") == {"name": "m"}
    door.close()


def test_a_reply_that_is_no_object_is_no_success(address: str) -> None:
    door = InferenceClient(address, 5)
    with pytest.raises(ServerRefused):
        door.request("GET", "/list")
    door.close()


def test_a_closed_door_is_named() -> None:
    door = InferenceClient("127.0.0.1:1", 5)
    with pytest.raises(ServerRefused, match=r"127\.0\.0\.1:1"):
        door.request("GET", "/ok")
