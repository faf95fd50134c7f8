"""Bad input gets a clear error at once; no worker dies of it, and no internals appear in the reply."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from engines.build import write_identity_onnx
from harness.invariants import assert_clean, settled
from harness.server import Http, Server, serving

pytestmark = pytest.mark.slow
GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    write_identity_onnx(repository, "m", dims=[2], max_batch=4)
    with serving(repository, "--http-max-input-size", "1000000") as running:
        http = Http(running.address())
        assert http.infer("m", x=("FP32", [1, 2], [1, 2]))[0] == 200
        http.close()
        yield running


def document(**changes: Any) -> bytes:  # a tensor's members
    return json.dumps({"inputs": [{**GOOD, **changes}]}).encode()


CASES: list[tuple[str, str, bytes, dict[str, str], int, str]] = [
    ("unknown model", "nobody", document(), {}, 404, "nobody"),
    ("unknown version", "m/versions/9", document(), {}, 404, "version 9"),
    ("a word for a version", "m/versions/old", document(), {}, 404, "old"),
    ("wrong shape", "m", document(shape=[1, 3], data=[1, 2, 3]), {}, 400, "x"),
    ("batch too large", "m", document(shape=[5, 2], data=[0] * 10), {}, 400, "m"),
    ("batch of zero", "m", document(shape=[0, 2], data=[]), {}, 400, "m"),
    ("wrong datatype", "m", document(datatype="INT32"), {}, 400, "INT32"),
    ("no such datatype", "m", document(datatype="FP31"), {}, 400, "FP31"),
    ("unknown input", "m", document(name="z"), {}, 400, "z"),
    ("missing input", "m", b'{"inputs":[]}', {}, 400, "x"),
    ("twice the same", "m", json.dumps({"inputs": [GOOD, GOOD]}).encode(), {}, 400, "x"),
    ("too few values", "m", document(data=[1]), {}, 400, "x"),
    ("negative shape", "m", document(shape=[-1, 2]), {}, 400, "x"),
    ("overflowing shape", "m", document(shape=[2**32, 2**32]), {}, 400, "x"),
    ("a number past int64", "m", document(shape=[2**70, 2]), {}, 400, "x"),
    ("shape of words", "m", document(shape=["1", 2]), {}, 400, "x"),
    ("no JSON", "m", b"{nonsense", {}, 400, "failed to parse the request JSON buffer"),
    ("empty body", "m", b"", {}, 400, "JSON"),
    ("deep JSON", "m", b"[" * 100_000, {}, 400, "JSON"),
    ("bad UTF-8", "m", b'{"id":"\xff"}', {}, 400, "JSON"),
    ("unknown output", "m", json.dumps({"inputs": [GOOD], "outputs": [{"name": "q"}]}).encode(), {}, 400, "q"),
    ("header length no number", "m", document(), {HEADER: "abc"}, 400, HEADER),
    ("header length negative", "m", document(), {HEADER: "-1"}, 400, HEADER),
    ("header length past the body", "m", document(), {HEADER: "99999999999999999999"}, 400, HEADER),
    ("oversize", "m", bytes(1_000_001), {}, 413, "exceeds the maximum allowed"),
    ("unknown coding", "m", document(), {"Content-Encoding": "br"}, 415, "br"),
    ("not gzip", "m", document(), {"Content-Encoding": "gzip"}, 400, "gzip"),
]


@pytest.mark.parametrize(("what", "path", "body", "headers", "status", "word"), CASES, ids=[each[0] for each in CASES])
def test_each_fault_has_its_sentence(
    server: Server, what: str, path: str, body: bytes, headers: dict[str, str], status: int, word: str
) -> None:
    http = Http(server.address())
    got, _, reply = http.send("POST", f"/v2/models/{path}/infer", body, headers)
    http.close()
    assert got == status, reply
    error = json.loads(reply)["error"]
    assert word in error
    assert not re.search(r"Traceback|/dev/shm|/tmp/|\.py\b|0x[0-9a-f]{6}", error), error
    assert "\n" not in error


@pytest.mark.parametrize(("sizes", "blob"), [([4], 8), ([12], 8), ([8], 12), ([-8], 8), (["8"], 8), ([2**64], 8)])
def test_binary_sizes_that_do_not_add_up(server: Server, sizes: list[Any], blob: int) -> None:
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": sizes[0]}}]}
    ).encode()
    http = Http(server.address())
    status, _, reply = http.send("POST", "/v2/models/m/infer", head + bytes(blob), {HEADER: str(len(head))})
    http.close()
    assert status == 400, reply
    assert "Traceback" not in reply.decode()


def test_a_thousand_faults_kill_nobody_and_leave_nothing(server: Server) -> None:
    cases = [each for each in CASES if len(each[2]) < 500_000]  # a larger one is answered before it is read, which cuts
    http = Http(server.address())

    def send(count: int) -> None:
        for _, path, body, headers, status, _ in itertools.islice(itertools.cycle(cases), count):
            assert http.send("POST", f"/v2/models/{path}/infer", body, headers)[0] == status

    send(len(cases))  # whatever the first of each kind allocates, exists now
    before, pids = settled(server), server.pids("m")
    send(1000)
    assert http.infer("m", x=("FP32", [1, 2], [1, 2]))[0] == 200
    http.close()
    assert server.pids("m") == pids
    assert_clean(before, server)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/m/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/health/live/", 404),
        ("GET", "/v2/models/..%2f..%2fetc/config", 404),
        ("GET", "/v2/models/%2e%2e", 404),
        ("POST", "/v2/models/m/generate", 400),
        ("POST", "/v2/systemsharedmemory/region/r/register", 400),
        ("POST", "/v2/repository/other/index", 501),
        ("POST", "/v1/models/m:predict", 400),
    ],
)
def test_paths_and_methods(server: Server, method: str, path: str, status: int) -> None:
    http = Http(server.address())
    got, headers, reply = http.send(method, path)
    http.close()
    assert got == status, reply
    assert json.loads(reply)["error"]
    assert status != 405 or headers["Allow"]
