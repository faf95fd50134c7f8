"""Clients that stall: the timeouts of request bodies and replies, on a server with short ones."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from engines.build import write_identity_onnx, write_python
from harness import raw_http
from harness.bystander import Bystander
from harness.installation import Installation
from harness.invariants import assert_clean, assert_gone, server_processes, settled
from harness.rpc_calls import target
from harness.server import Http, Server, eventually, serving
from harness.stream_reader import StreamReader
from harness.victim import BYSTANDER, bystander_repository
from mmsup.ipc.specs import TensorSpec

pytestmark = pytest.mark.slow

MIB = 1 << 20
CHUNKED = "Transfer-Encoding: chunked"
WHOLE = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'


ENDLESS = """
import numpy as np

class Model:
    def infer(self, inputs):
        while True:
            yield {"y": np.zeros(900, np.int32)}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("short")
    installed = Installation(folder / "installed")
    installed.change("gateway/http/request_body.py", "IDLE_S: Final = 30.0", "IDLE_S: Final = 0.5")
    installed.change("gateway/http/request_body.py", "TOTAL_S: Final = 600.0", "TOTAL_S: Final = 2.0")
    installed.change("gateway/http/response.py", "WRITE_TIMEOUT_S: Final = 30.0", "WRITE_TIMEOUT_S: Final = 0.5")
    repository = bystander_repository(folder / "models")
    write_identity_onnx(repository, "m", dims=[-1])
    text = TensorSpec("x", "INT32", (1,)), TensorSpec("y", "INT32", (-1,))
    write_python(repository, "endless", ENDLESS, text[:1], text[1:])
    with serving(repository, python=installed.python) as running:
        http = Http(running.address())
        for name in (BYSTANDER, "m"):
            assert http.infer(name, x=("FP32", [1], [0.0]))[0] == 200
        http.close()
        assert raw_http.ask(running.address(), large())[0] == 200
        yield running
        everyone = server_processes(running)
        assert running.stop() == 0, running.log()
        assert_gone(running, everyone)


@contextlib.contextmanager
def unnoticed(server: Server) -> Iterator[None]:
    """In the block no other client notices anything; the invariants hold afterwards."""
    before = settled(server)
    with Bystander(server, BYSTANDER):
        yield
    assert_clean(before, server)


def large(size: int = 8 * MIB) -> list[bytes]:
    """A large request with a reply of the same size, in parts."""
    words = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d],"parameters":{"binary_data_size":%d}}],' % (
        size // 4,
        size,
    )
    words += b'"parameters":{"binary_data_output":true}}'
    length = f"Inference-Header-Content-Length: {len(words)}"
    return [raw_http.head("m", length, size=len(words) + size), words, bytes(size)]


STARTS = {
    "sized": [raw_http.head("m", size=len(WHOLE)), WHOLE[:10]],
    "chunked": [raw_http.head("m", CHUNKED), b"a\r\n" + WHOLE[:10] + b"\r\n"],
    "large": [*large()[:2], bytes(100_000)],
}


@pytest.mark.fault("F45")
@pytest.mark.parametrize("kind", STARTS)
def test_a_body_that_stops_is_a_408_and_the_end_of_the_connection(server: Server, kind: str) -> None:
    with unnoticed(server), raw_http.connected(server.address()) as client:
        for part in STARTS[kind]:
            client.sendall(part)
        status, told = raw_http.reply(client)
        assert (status, told["code"]) == (408, "body_timeout")
        assert raw_http.is_closed(client)


@pytest.mark.fault("F45")
@pytest.mark.parametrize("kind", ["sized", "chunked"])
def test_a_body_that_drips_for_ever_is_a_408_too(server: Server, kind: str) -> None:
    drip = b" " if kind == "sized" else b"1\r\n \r\n"
    with unnoticed(server), raw_http.connected(server.address()) as client:
        client.sendall(raw_http.head("m", size=1000) if kind == "sized" else raw_http.head("m", CHUNKED))
        drops = 0
        while not answers_within(client, 0.1):
            client.sendall(drip)
            drops += 1
        status, told = raw_http.reply(client)
        assert (status, told["code"]) == (408, "body_timeout")
        assert drops > 5, "it was not the pause between two drops"


def answers_within(client: socket.socket, limit_s: float) -> bool:
    return bool(select.select([client], [], [], limit_s)[0])


@pytest.mark.fault("F45")
def test_a_reply_that_nobody_reads_is_given_up_and_its_memory_free_while_the_client_stays(server: Server) -> None:
    with unnoticed(server), raw_http.connected(server.address(), receive_bytes=4096) as client:
        for part in large():
            client.sendall(part)
        assert answers_within(client, 20.0)
        # The kernel holds half of it at most, so it cannot have been sent.
        eventually(lambda: server.gauge("mmsup_requests_open", model="m") == 0, "the reply is given up")
        eventually(lambda: not settled(server).used_bytes, "no arena memory is used")


@pytest.mark.fault("F69")
def test_a_stream_that_nobody_reads_is_given_up(server: Server) -> None:
    def given_up() -> float:
        return server.gauge("nv_inference_request_failure", model="endless", version="1", reason="CANCELED")

    with unnoticed(server):
        with StreamReader(server, "endless/generate_stream", {"x": 1}, receive_bytes=4096) as reader:
            reader.next()
            eventually(lambda: given_up() == 1, "the stream is over while its client stays")
        with grpc.insecure_channel(target(server)) as channel:
            given = service_pb2.ModelInferRequest(model_name="endless")
            given.inputs.add(name="x", datatype="INT32", shape=[1]).contents.int_contents.append(1)
            call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([given]))
            next(call)  # and no other
            eventually(lambda: given_up() == 2, "the same over gRPC")
