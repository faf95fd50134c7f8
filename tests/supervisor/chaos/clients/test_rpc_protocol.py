"""Calls of chaos over gRPC: what the client's messages say to a reader of protobuf, and how its replies are read."""

from __future__ import annotations

import asyncio
import struct

import grpc
import pytest
from tritonclient.grpc import service_pb2

from mmsup.supervisor.chaos.clients.http_client import ConnectionReset, HttpCall, HttpReply
from mmsup.supervisor.chaos.clients.payload import make_payload
from mmsup.supervisor.chaos.clients.protocol import FaultCommand
from mmsup.supervisor.chaos.clients.rpc_client import RpcClient
from mmsup.supervisor.chaos.clients.rpc_protocol import CODE_TRAILER, MODEL_INFER, RpcAdapter

PAYLOAD = make_payload(1, 3, 300)


def test_a_call_has_the_tensors_of_the_request_with_a_row_of_a_model_that_batches() -> None:
    adapter = RpcAdapter(has_batch_axis=lambda name: name == "batched")
    call = adapter.build_request("batched", PAYLOAD, FaultCommand("exit", 3))
    assert call.path == MODEL_INFER
    read = service_pb2.ModelInferRequest.FromString(call.body)
    shown = [(each.name, each.datatype, list(each.shape)) for each in read.inputs]
    assert shown == [("x", "FP32", [1, 300]), ("mode", "BYTES", [1, 1]), ("amount", "FP64", [1, 1])]
    assert (read.model_name, read.id) == ("batched", "chaos")
    assert list(read.raw_input_contents) == [PAYLOAD.data, b"\x04\0\0\0exit", struct.pack("<d", 3)]
    single = service_pb2.ModelInferRequest.FromString(adapter.build_request("m", make_payload(1, 2, 8), None).body)
    assert ([list(each.shape) for each in single.inputs], single.id) == ([[8]], "")


def reply() -> service_pb2.ModelInferResponse:
    made = service_pb2.ModelInferResponse(model_name="m", model_version="1")
    for name, data in (("life", struct.pack("<2q", 2, 77)), ("y", PAYLOAD.data)):
        made.outputs.add(name=name, datatype="FP32", shape=[1, 300])
        made.raw_output_contents.append(data)
    return made


def test_a_reply_is_read_and_a_spoiled_one_is_an_error() -> None:
    body = reply().SerializeToString()
    answer = RpcAdapter().parse_reply(HttpReply(0, {}, body))
    assert (answer.data, answer.revision, answer.pid) == (PAYLOAD.data, 2, 77)
    for cut in (body[:-1], body[:20], b"\x07", b""):
        assert RpcAdapter().parse_reply(HttpReply(0, {}, cut)).code == "unreadable"


def test_an_error_has_the_servers_code_and_text() -> None:
    answer = RpcAdapter().parse_reply(HttpReply(14, {CODE_TRAILER: "worker_crashed"}, b"it died"))
    assert (answer.data, answer.code, answer.text) == (None, "worker_crashed", "it died")


async def served(handler: grpc.RpcMethodHandler) -> HttpReply:
    """What the client gets for one call from a server of grpcio."""
    server = grpc.aio.server()
    service, method = MODEL_INFER.strip("/").split("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = RpcClient(f"127.0.0.1:{port}")
    try:
        return await client.send(HttpCall(MODEL_INFER, b"asked"))
    finally:
        await client.close()
        await server.stop(None)


def test_an_answer_comes_back_and_an_error_of_the_server_with_its_code() -> None:
    async def answer(request: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return request + b" and answered"

    async def fail(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        context.set_trailing_metadata([(CODE_TRAILER, "queue_full")])
        await context.abort(grpc.StatusCode.UNAVAILABLE, "full")
        return b""

    found = asyncio.run(served(grpc.unary_unary_rpc_method_handler(answer)))
    assert found == HttpReply(0, {}, b"asked and answered")
    found = asyncio.run(served(grpc.unary_unary_rpc_method_handler(fail)))
    assert found == HttpReply(14, {CODE_TRAILER: "queue_full"}, b"full")


def test_an_error_without_the_servers_code_is_a_broken_connection() -> None:
    async def fail(_: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return b""

    with pytest.raises(ConnectionReset, match="UNAVAILABLE: Socket closed"):
        asyncio.run(served(grpc.unary_unary_rpc_method_handler(fail)))
