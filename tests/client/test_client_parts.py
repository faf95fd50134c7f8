"""The pure parts of the client: addresses, tensors, HTTP, events, retries, requests, replies; and what it imports."""

from __future__ import annotations

import ast
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from mmsup.client import calls, replies, tensors
from mmsup.client.address import ServerAddress, parse_address
from mmsup.client.calls import InferOptions
from mmsup.client.errors import ClientError, ConnectionFailed, InvalidReply, ServerRefused, TimedOut
from mmsup.client.http_message import ChunkedBody, EventParser, parse_head, request_head
from mmsup.client.replies import HttpReply
from mmsup.client.retry import next_wait_s
from mmsup.client.shared_memory import SharedMemory

ROOT = Path(__file__).resolve().parents[2] / "src" / "mmsup" / "client"


def test_it_imports_numpy_and_the_standard_library_alone() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "mmsup", "ml_dtypes"}
    for path in ROOT.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed, f"{path}: {name}"
                assert not name.startswith("mmsup") or name.startswith("mmsup.client"), f"{path}: {name}"
    assert not ROOT.is_symlink()


@pytest.mark.slow
def test_importing_it_loads_no_other_library() -> None:
    program = "import sys, mmsup.client\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    found = {each.split(".")[0] for each in done.stdout.split()}
    assert not found & {"aiohttp", "ml_dtypes", "orjson", "msgpack", "google", "tritonclient", "uvloop", "yaml"}
    assert not {each for each in done.stdout.split() if each.startswith("mmsup.") and "client" not in each}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:8000", ServerAddress("localhost", 8000)),
        ("http://localhost:9/", ServerAddress("localhost", 9)),
        ("models.example", ServerAddress("models.example", 8000)),
        ("[::1]:7", ServerAddress("::1", 7)),
        ("[::1]", ServerAddress("::1", 8000)),
        ("unix:/run/x.sock", ServerAddress("", path="/run/x.sock")),
    ],
)
def test_addresses(text: str, expected: ServerAddress) -> None:
    found = parse_address(text)
    assert (found.host, found.port if not found.path else 0, found.path) == (
        expected.host, expected.port if not expected.path else 0, expected.path,
    )  # fmt: skip
    assert found.path or parse_address(found.host_header) == found


@pytest.mark.parametrize("text", ["", "https://x", "unix:", "a:b", "a:0", "a:70000", "http://a/b", "a:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)


ARRAYS: dict[str, Any] = {
    **{name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in tensors.DTYPES.items()},
    "BF16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "BYTES": np.array([[b"a", b"", b"\x00\xff"], [b"d", "ä".encode(), b"f" * 300]], dtype=object),
}


@pytest.mark.parametrize("datatype", ARRAYS)
def test_every_datatype_goes_both_ways(datatype: str) -> None:
    array = ARRAYS[datatype]
    assert tensors.datatype_of(array) == datatype
    found = tensors.from_bytes(tensors.to_bytes(array), datatype, array.shape)
    assert found.dtype == array.dtype
    assert (found == array).all()
    if datatype not in ("FP16", "BF16", "BYTES"):
        assert (tensors.from_json(tensors.to_json(array), datatype, array.shape) == array).all()


def test_other_layouts_and_strings_are_sent_as_what_they_mean() -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    for other in (array.T, array[::2], array[:, ::-1], array.astype(">i4")):
        found = tensors.from_bytes(tensors.to_bytes(other), "INT32", other.shape)
        assert (found == other).all()
    for strings in (np.array(["a", "ä"]), np.array([b"a", "ä".encode()])):
        assert tensors.from_bytes(tensors.to_bytes(strings), "BYTES", (2,)).tolist() == [b"a", "ä".encode()]
    assert tensors.from_bytes(tensors.to_bytes(np.zeros((0, 3), np.float32)), "FP32", (0, 3)).shape == (0, 3)
    assert tensors.from_bytes(tensors.to_bytes(np.full((), 2.0)), "FP64", ()).item() == 2
    with pytest.raises(ValueError, match="complex64 cannot be sent"):
        tensors.datatype_of(np.zeros(1, np.complex64))
    for datatype in ("FP16", "BF16"):
        with pytest.raises(ValueError, match="no form in JSON"):
            tensors.to_json(ARRAYS[datatype])


@pytest.mark.parametrize("seed", range(20))
def test_chunks_and_events_are_the_same_in_whatever_pieces_they_come(seed: int) -> None:
    rng = random.Random(seed)
    events = [json.dumps({"n": number, "text": "ä" * rng.randrange(20)}) for number in range(10)]
    body = b"".join(f"data: {each}\n\n".encode() for each in events)
    chunks = bytearray()
    at = 0
    while at < len(body):
        size = rng.randrange(1, 40)
        piece = body[at : at + size]
        chunks += b"%x\r\n%b\r\n" % (len(piece), piece)
        at += size
    chunks += b"0\r\n\r\n"
    decoder, parser, found = ChunkedBody(), EventParser(), list[str]()
    at = 0
    while at < len(chunks):
        assert not decoder.is_complete
        size = rng.randrange(1, 30)
        found += parser.feed(decoder.feed(bytes(chunks[at : at + size])))
        at += size
    assert decoder.is_complete
    assert found == events


def test_what_is_no_http_is_refused() -> None:
    for data in (b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
                 b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b""):  # fmt: skip
        with pytest.raises(ValueError, match=r".+"):
            parse_head(data)
    with pytest.raises(ValueError, match=r".+"):
        ChunkedBody().feed(b"no size\r\n")
    head = parse_head(b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\ncontent-length: 7\r\nConnection: close\r\n\r\n")
    assert (head.status, head.length, head.is_last) == (503, 7, True)
    assert parse_head(b"HTTP/1.0 400 Bad Request\r\n\r\n").is_last, "what cannot be read is answered so"
    assert not parse_head(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").is_last
    assert not parse_head(b"HTTP/1.1 200 OK\r\n\r\n").is_last
    assert request_head("GET", "/v2", "h:1", {}, 0) == b"GET /v2 HTTP/1.1\r\nHost: h:1\r\n\r\n"


def refused(*, retryable: bool, after_s: float = 0) -> ServerRefused:
    return ServerRefused(503, "queue_full", "full", retryable=retryable, retry_after_s=after_s)


@pytest.mark.parametrize(
    ("error", "tried", "retries", "left_s", "waits"),
    [
        (refused(retryable=True), 1, 0, 60, False),
        (refused(retryable=True), 1, 1, 60, True),
        (refused(retryable=True), 2, 1, 60, False),
        (refused(retryable=False), 1, 9, 60, False),
        (refused(retryable=True, after_s=3), 1, 1, 2, False),
        (ConnectionFailed("x"), 1, 1, 60, True),
        (TimedOut("x"), 1, 1, 60, False),
        (InvalidReply("x"), 1, 1, 60, False),
        (refused(retryable=True), 1, 1, 0, False),
    ],
)
def test_only_what_may_succeed_is_tried_again(
    error: ClientError, tried: int, retries: int, left_s: float, waits: bool
) -> None:
    assert (next_wait_s(error, tried, retries, left_s, 1.0) is not None) is waits


def test_the_server_says_how_long_to_wait_and_waits_grow() -> None:
    assert next_wait_s(refused(retryable=True, after_s=3), 1, 1, 60, 0.0) == 3
    waits = [next_wait_s(refused(retryable=True), tried, 20, 60, 1.0) or 0 for tried in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[-1] == 5


def document_of(call: calls.Call[Any]) -> Any:
    return json.loads(bytes(call.body[0]))


def test_a_request_has_what_was_asked_for() -> None:
    x = np.array([[1, 2]], dtype=np.float32)
    options = InferOptions("3", ["y"], id="r", priority=2, parameters={"beam": 4}, timeout_s=1.5)
    call = calls.infer("a/b", {"x": x}, options, [])
    assert call.path == "/v2/models/a%2Fb/versions/3/infer"
    assert bytes(call.body[1]) == x.tobytes()
    assert call.headers["Inference-Header-Content-Length"] == str(len(call.body[0]))
    assert document_of(call) == {
        "id": "r",
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
        "parameters": {"beam": 4, "priority": 2, "timeout": 1_500_000, "binary_data_output": True},
        "outputs": [{"name": "y"}],
    }


def test_arrays_in_shared_memory_are_named_and_not_sent() -> None:
    memory = SharedMemory(4096)
    try:
        first, second = memory.array(4, "float32"), memory.array((2, 2), np.float64)
        options = InferOptions(into={"y": second})
        call = calls.infer("m", {"x": first, "tail": first[2:], "every": first[::2]}, options, [memory])
        document = document_of(call)
        place = {"shared_memory_region": memory.name}
        shown = [each["parameters"] for each in document["inputs"]]
        assert shown == [
            place | {"shared_memory_byte_size": 16},
            place | {"shared_memory_offset": 8, "shared_memory_byte_size": 8},
            {"binary_data_size": 8},
        ]
        where = place | {"shared_memory_offset": 64, "shared_memory_byte_size": 32}
        assert document["outputs"] == [{"name": "y", "parameters": where}]
        assert len(call.body) == 2
        with pytest.raises(ValueError, match="do not fit"):
            memory.array(4096, "uint8")
        memory.clear()
        assert memory.array(4096, "uint8").nbytes == 4096
        with pytest.raises(ValueError, match="'y' is not in memory"):
            calls.infer("m", {"x": first}, InferOptions(into={"y": np.zeros(4)}), [memory])
        with pytest.raises(ValueError, match="strings"):
            memory.array(4, object)
    finally:
        del first, second
        memory.close()
    assert not Path(f"/dev/shm/{memory.key}").exists()


def test_plausible_mistakes_are_understood_or_named() -> None:
    assert calls.document("v2/models/m/config").path == "/v2/models/m/config"
    assert calls.model_path("m", 1) == "/v2/models/m/versions/1"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"outputs is a list of names: \['y'\]"):
        calls.infer("m", {}, InferOptions(outputs="y"), [])


def test_an_array_for_an_output_of_another_datatype_is_not_taken_for_it() -> None:
    body = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {}}]}'
    with pytest.raises(ValueError, match="output 'y' is FP32, and the array for it has int32"):
        replies.read_result(answer(200, body), {"y": np.zeros(2, np.int32)})
    result = replies.read_result(answer(200, body), {"y": np.ones(3, np.float32)})
    assert result["y"].tolist() == [1, 1]


def answer(status: int, body: bytes, **headers: str) -> HttpReply:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = parse_head(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode())
    return HttpReply(head, memoryview(bytearray(body)))


@pytest.mark.parametrize(
    ("status", "body", "headers", "code", "retryable", "after_s"),
    [
        (
            503,
            b'{"error": "full", "code": "queue_full", "retryable": true}',
            {"Retry_After": "2"},
            "queue_full",
            True,
            2,
        ),
        (400, b'{"error": "bad", "code": "bad_request", "retryable": false}', {}, "bad_request", False, 0),
        (400, b'{"error": "of another server"}', {}, "error", False, 0),
        (502, b"<html>proxy</html>", {}, "error", False, 0),
        (503, b"", {"Retry_After": "1"}, "not_ready", True, 1),
    ],
)
def test_errors_have_code_retryable_and_model(
    status: int, body: bytes, headers: dict[str, str], code: str, retryable: bool, after_s: float
) -> None:
    call = calls.model_metadata("m", "")
    with pytest.raises(ServerRefused) as caught:
        call.result(answer(status, body, **headers))
    found = caught.value
    assert (found.status, found.code, found.retryable, found.retry_after_s) == (status, code, retryable, after_s)
    assert found.model == "m"
    assert str(status) in str(found)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b"{",
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "ODD", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 99}}]}',
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1]}]}',
    ],
)
def test_an_answer_that_is_none_is_an_error_of_the_client_s_own_kind(body: bytes) -> None:
    with pytest.raises(InvalidReply):
        replies.read_result(answer(200, body), {})


def test_an_error_in_a_stream_is_raised() -> None:
    head, cold = answer(200, b"").head, answer(200, b"", x_mmsup_cold="1").head
    with pytest.raises(ServerRefused, match="it broke"):
        replies.read_event('{"error": "it broke", "code": "inference_failed"}', "m", {"y": "FP32"}, head)
    text, datatypes = '{"model_name": "m", "model_version": "1", "y": [1, 2], "t": "ä"}', {"y": "FP32", "t": "BYTES"}
    assert not replies.read_event(text, "m", datatypes, head).was_cold
    found = replies.read_event(text, "m", datatypes, cold)
    assert found.was_cold
    assert found["y"].tolist() == [1, 2]
    assert found["t"].tolist() == ["ä".encode()]
