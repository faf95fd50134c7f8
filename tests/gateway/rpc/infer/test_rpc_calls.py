"""Calls of gRPC from their first byte to their status, with models that are functions."""

from __future__ import annotations

import asyncio
import gc
import gzip
import struct
import weakref
import zlib
from typing import Any

import pytest

from fake_router import FakeRouter, metadata
from http2_client import data, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.streams import STREAM_WINDOW
from mmsup.gateway.protocol import infer_request as request_document
from mmsup.gateway.rpc.calls import message_receiver
from mmsup.gateway.rpc.calls.message_framing import SLICE_BYTES
from mmsup.gateway.rpc.calls.messages import INFERENCE, Message, message_class, methods
from mmsup.gateway.rpc.infer import call_handlers, infer_messages
from mmsup.ipc.errors import ModelError, ServerError
from mmsup.ipc.rpc.header_literals import Headers, block_of
from rpc_session import Call, RpcSession, framed, infer_reply, infer_request, make_router, run

OK, INVALID, DEADLINE, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 5, 8, 12, 13, 14
STREAM_REPLY = message_class("inference.ModelStreamInferResponse")


def held_router() -> FakeRouter:
    """Whose requests wait until `go` is set."""
    router = make_router()
    router.go = asyncio.Event()  # type: ignore[attr-defined]
    router.before_infer = router.go.wait  # type: ignore[method-assign, attr-defined]
    return router


def test_an_inference_is_answered_with_its_outputs_and_a_status() -> None:
    async def check(session: RpcSession) -> None:
        call = await session.unary("ModelInfer", infer_request(id="seven"))
        assert (call.code, call.text, call.reset) == (OK, "", None)
        assert call.first[:2] == [(b":status", b"200"), (b"content-type", b"application/grpc")]
        reply = infer_reply(call)
        assert (reply.model_name, reply.model_version, reply.id) == ("m", "1", "seven")
        assert list(reply.raw_output_contents) == [struct.pack("<2f", 1.0, 2.5)]
        assert session.rows() >= {("m", "1")}

    run(check)


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_a_message_may_come_in_any_pieces(cut: int) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open("ModelInfer")
        whole = framed(infer_request().SerializeToString())
        await session.send(*[data(call.number, whole[at : at + cut]) for at in range(0, len(whole), cut)])
        await session.send(data(call.number, end=True))
        assert (await session.ended(call)).code == OK

    run(check)


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_a_compressed_message_is_read(encoding: bytes, compress: object) -> None:
    async def check(session: RpcSession) -> None:
        assert callable(compress)
        call = await session.open("ModelInfer", [(b"grpc-encoding", encoding)])
        await session.message(call, compress(infer_request([3.0] * 5000).SerializeToString()), 1, end=True)
        assert (await session.ended(call)).code == OK
        assert len(infer_reply(call).raw_output_contents[0]) == 20_000

    run(check)


def test_an_encoding_that_is_not_known_is_unimplemented_and_says_what_is() -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open("ModelInfer", [(b"grpc-encoding", b"zstd")])
        assert (call.code, call.trailers["grpc-accept-encoding"]) == (UNIMPLEMENTED, "identity, deflate, gzip")

    run(check)


@pytest.mark.parametrize("path", ["inference.GRPCInferenceService/Nothing", "other/ModelInfer", "inference.x/y/z"])
def test_a_method_that_is_not_there_is_unimplemented(path: str) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open(path)
        assert (call.code, call.text) == (UNIMPLEMENTED, f"there is no method /{path}")

    run(check)


@pytest.mark.parametrize(
    "given",
    [
        [(b":method", b"GET"), (b":path", b"/"), (b"content-type", b"application/grpc")],
        [(b":method", b"POST"), (b":path", b"/"), (b"content-type", b"application/json")],
        [(b":method", b"POST"), (b":path", b"/"), (b"content-type", b"application/grpc-web+proto")],
        [(b":method", b"POST"), (b":path", b"/")],
        [(b":method", b"POST"), (b":path", b"/"), (b"content-type", b"application/grpc-web")],
    ],
)
def test_a_request_that_is_no_call_is_answered_with_http_415(given: Headers) -> None:
    async def check(session: RpcSession) -> None:
        call = session.calls[1] = Call(1)
        await session.send(headers(1, block_of([given[0], (b":scheme", b"http"), *given[1:]]), end=True))
        assert call.first[0] == (b":status", b"415")
        assert call.is_over

    run(check)


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
def test_a_call_without_a_message_or_with_two_or_half_a_one_is_refused(method: str) -> None:
    async def check(session: RpcSession) -> None:
        request = infer_request() if method == "ModelInfer" else methods(INFERENCE)[method].request()
        message = request.SerializeToString()
        none = await session.open(method, end=True)
        assert (none.code, none.text) == (INVALID, "the call has no message")
        half = await session.open(method)
        await session.send(data(half.number, framed(b"abc")[:-1], end=True))
        assert (half.code, half.text) == (INVALID, "the call ends within a message")
        two = await session.open(method)
        await session.send(data(two.number, framed(message) + framed(message), end=True))
        assert (two.code, "more than one message" in two.text) == (INVALID, True)

    run(check)


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x05ab"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    async def check(session: RpcSession) -> None:
        for method in methods(INFERENCE):
            call = await session.unary(method, data) if method != "ModelStreamInfer" else None
            if call is not None and call.code != UNIMPLEMENTED:
                assert (call.code, "failed to parse the request" in call.text) == (INVALID, True), method

    run(check)


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"model_name": "no"}, NOT_FOUND, "Request for unknown model: 'no' is not found"),
        ({"model_version": "9"}, NOT_FOUND, "Request for unknown model: 'm' version 9 is not found"),
        (
            {"model_version": "x y"},
            INVALID,
            "failed to get model version from specified version string 'x y'",
        ),
    ],
)
def test_a_model_that_is_not_there_is_said_in_the_words_that_clients_test(
    change: dict[str, Any], code: int, text: str
) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.unary("ModelInfer", infer_request(**change))
        assert call.code == code
        assert call.text.startswith(text)

    run(check)


def test_a_request_is_checked_as_over_http() -> None:
    async def check(session: RpcSession) -> None:
        wrong = infer_request()
        wrong.inputs[0].shape[:] = [1, 2]
        call = await session.unary("ModelInfer", wrong)
        assert (call.code, call.trailers["mmsup-code"]) == (INVALID, "bad_request")
        assert call.text == "unexpected shape for input 'X' for model 'm'. Expected [-1], got [1,2]"

    run(check)


@pytest.mark.parametrize("name", ["x" * 100_000, "a\nb", "../m", "é", ""], ids=["long", "line", "path", "word", "none"])
def test_a_name_that_no_model_has_is_counted_under_no_name_of_the_client_s(name: str) -> None:
    async def check(session: RpcSession) -> None:
        for number in range(3):
            mixed = infer_request(model_name=name + str(number), raw_input_contents=[b"abcd"])
            call = await session.unary("ModelInfer", mixed)
            assert call.code == INVALID
            call = await session.unary("ModelInfer", infer_request(model_name=name + str(number)))
            assert call.code == NOT_FOUND
        assert {model for model, _ in session.rows()} <= {"_unknown", ""}

    run(check)


def test_an_error_of_a_model_is_internal_and_says_nothing_of_the_machine() -> None:
    async def check(session: RpcSession) -> None:
        session.router.refusal = ModelError("inference_failed", "boom at /srv/models/m.py", model="m")
        call = await session.unary("ModelInfer", infer_request())
        assert (call.code, call.text) == (INTERNAL, "boom at <path>")

    run(check)


def test_an_error_that_passes_says_when_to_call_again() -> None:
    async def check(session: RpcSession) -> None:
        session.router.refusal = ServerError("queue_full", "Exceeds maximum queue size", retry_after_s=2)
        call = await session.unary("ModelInfer", infer_request())
        assert (call.code, call.trailers["grpc-retry-pushback-ms"]) == (UNAVAILABLE, "2000")

    run(check)


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive", "ModelStreamInfer"])
@pytest.mark.parametrize("timeout", [b"", b"5", b"5X", b"-1S", b"123456789S", b"1.5S"])
def test_a_deadline_that_is_none_is_refused(method: str, timeout: bytes) -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open(method, [(b"grpc-timeout", timeout)])
        if timeout:
            assert (call.code, call.text) == (INVALID, "grpc-timeout is no number with a unit")

    run(check)


@pytest.mark.parametrize("timeout", [b"99999999H", b"1H", b"1000000u", b"99999999n"])
def test_the_longest_deadlines_are_deadlines(timeout: bytes) -> None:
    async def check(session: RpcSession) -> None:
        for method, message in (("ModelInfer", infer_request()), ("ServerLive", None)):
            assert (await session.unary(method, message, [(b"grpc-timeout", timeout)])).code == OK
        stream = await session.open("ModelStreamInfer", [(b"grpc-timeout", timeout)])
        await session.message(stream, infer_request().SerializeToString(), end=True)
        assert (await session.ended(stream)).code == OK

    run(check)


def test_a_call_that_is_cancelled_frees_its_request_and_says_nothing_more() -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open("ModelInfer")
        await session.message(call, infer_request().SerializeToString(), end=True)
        assert session.router.unclosed_requests == 1
        await session.send(frames.rst_stream(call.number, frames.CANCEL))
        assert session.router.unclosed_requests == 0
        session.router.go.set()  # type: ignore[attr-defined]
        await session.settle()
        assert not call.is_over
        assert (await session.unary("ModelInfer", infer_request())).code == OK

    run(check, held_router)


def test_a_client_that_hangs_up_frees_all_its_requests() -> None:
    async def check(session: RpcSession) -> None:
        for _ in range(3):
            call = await session.open("ModelInfer")
            await session.message(call, infer_request().SerializeToString(), end=True)
        stream = await session.open("ModelStreamInfer")
        await session.message(stream, infer_request().SerializeToString())
        assert session.router.unclosed_requests == 4
        session.pipe.close()

    run(check, held_router)


def test_what_a_request_holds_is_free_with_its_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only when garbage is collected next, which is seldom: messages are large."""
    made: list[weakref.ref[Any]] = []

    class Blob(bytearray):
        """Unlike bytes it can be referred to weakly."""

    def read(message: Message) -> Any:  # RpcRequest
        blobs: Any = [Blob(bytes(8))]
        found = infer_messages.RpcRequest(message.model_name, "", "", read_request(message).document, blobs)
        made.append(weakref.ref(blobs[0]))
        return found

    read_request = infer_messages.read_request
    monkeypatch.setattr(infer_messages, "read_request", read)
    gc.disable()

    async def check(session: RpcSession) -> None:
        assert (await session.unary("ModelInfer", infer_request())).code == OK
        assert (await session.unary("ModelInfer", infer_request(model_name="none"))).code == NOT_FOUND
        assert [each() for each in made] == [None, None]

    try:
        run(check)
    finally:
        gc.enable()


def test_the_memory_of_a_reply_is_another_request_s_when_it_was_copied_and_not_before() -> None:
    """The fake router overwrites what is given back."""

    async def check(session: RpcSession) -> None:
        await session.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 4}))
        call = await session.open("ModelInfer")
        await session.message(call, infer_request([7.0] * 100).SerializeToString(), end=True)
        assert session.router.unclosed_requests == 1
        await session.send(frames.window_update(call.number, 10_000))
        assert (await session.ended(call)).code == OK
        assert infer_reply(call).raw_output_contents[0] == struct.pack("<100f", *[7.0] * 100)
        assert session.router.unclosed_requests == 0

    run(check, make_router)


# Sizes.


def test_a_message_beyond_the_limit_is_exhausted_and_names_the_limit() -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open("ModelInfer")
        await session.send(data(call.number, framed(bytes(5001))[:10]))
        assert (call.code, call.reset) == (EXHAUSTED, frames.NO_ERROR)
        assert "5001 bytes exceeds the maximum allowed 5000 bytes" in call.text
        bomb = await session.open("ModelInfer", [(b"grpc-encoding", b"gzip")])
        await session.message(bomb, gzip.compress(bytes(1 << 20)), 1)
        assert (bomb.code, "exceeds the maximum allowed" in bomb.text) == (EXHAUSTED, True)

    run(check, lambda: make_router(5000))


def test_a_message_larger_than_the_window_is_let_in() -> None:
    async def check(session: RpcSession) -> None:
        whole = framed(infer_request([1.0] * (STREAM_WINDOW // 2)).SerializeToString())
        most = 1 << 30
        await session.send(frames.settings({frames.INITIAL_WINDOW_SIZE: most}), frames.window_update(0, most))
        call = await session.open("ModelInfer")
        at = 0
        while at < len(whole):
            piece = whole[at : min(at + STREAM_WINDOW + call.granted - at, at + (1 << 14))]
            assert piece, "the window does not grow"
            await session.send(data(call.number, piece))
            at += len(piece)
        await session.send(data(call.number, end=True))
        assert (await session.ended(call)).code == OK

    run(check)


def test_messages_beyond_the_memory_of_the_gateway_are_refused_and_later_ones_served() -> None:
    async def check(session: RpcSession) -> None:
        session.server._memory.budget._limit = 3000
        first = await session.open("ModelInfer")
        await session.send(data(first.number, framed(bytes(2000))[:-1]))
        second = await session.open("ModelInfer")
        await session.send(data(second.number, framed(bytes(2000))[:-1]))
        assert (second.code, second.trailers["mmsup-code"]) == (UNAVAILABLE, "no_buffer")
        await session.send(frames.rst_stream(first.number, frames.CANCEL))
        assert (await session.unary("ModelInfer", infer_request([1.0] * 400))).code == OK

    run(check)


def test_messages_that_are_announced_and_do_not_come_deny_nobody_else_memory() -> None:
    async def check(session: RpcSession) -> None:
        session.server._memory.budget._limit = 3000
        for _ in range(10):
            call = await session.open("ModelInfer")
            await session.send(data(call.number, framed(bytes(2000))[:10]))
            assert not call.is_over
        assert (await session.unary("ModelInfer", infer_request([1.0] * 400))).code == OK

    run(check)


def test_small_compressed_messages_of_a_long_stream_hold_no_memory_in_the_end() -> None:
    """A message may be larger compressed than not."""

    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer", [(b"grpc-encoding", b"gzip")])
        message = gzip.compress(infer_request(model_name="no").SerializeToString())
        for _ in range(20):
            await session.send(data(stream.number, framed(message, 1)[:9]), data(stream.number, framed(message, 1)[9:]))
        assert len(stream.messages()) == 20
        assert session.server._memory.budget.held_bytes == 0

    run(check)


def test_a_client_that_stops_within_a_message_is_told_so() -> None:
    async def check(session: RpcSession) -> None:
        call = await session.open("ModelInfer")
        await session.send(data(call.number, framed(bytes(100))[:50]))
        session.listener.on_tick(asyncio.get_running_loop().time() + 1000)
        await session.settle()
        assert (call.code, call.trailers["mmsup-code"]) == (DEADLINE, "body_timeout")

    run(check)


def test_a_message_that_drips_has_a_limit_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_receiver, "MESSAGE_LIMIT_S", 1e9)  # parts come all the time

    async def check(session: RpcSession) -> None:
        began_s = asyncio.get_running_loop().time()
        stream = await session.open("ModelStreamInfer")
        unary = await session.open("ModelInfer")
        for each in (stream, unary):
            await session.send(data(each.number, framed(bytes(100))[:50]))
        session.listener.on_tick(began_s + message_receiver.MESSAGE_TOTAL_S - 1)
        await session.settle()
        assert not stream.is_over
        assert not unary.is_over
        session.listener.on_tick(began_s + message_receiver.MESSAGE_TOTAL_S + 10)
        await session.settle()
        for each in (stream, unary):
            assert (each.code, each.trailers["mmsup-code"]) == (DEADLINE, "body_timeout")
            assert "did not come within 600 s" in each.text

    run(check)


def test_a_message_that_inflates_far_is_inflated_between_the_calls_of_others() -> None:
    async def check(session: RpcSession) -> None:
        most = 1 << 30
        await session.send(frames.settings({frames.INITIAL_WINDOW_SIZE: most}), frames.window_update(0, most))
        values = [0.0] * (1 << 20)
        big = infer_request([1.0])
        big.inputs[0].ClearField("contents")
        big.inputs[0].shape[0] = len(values)
        big.raw_input_contents.append(bytes(4 * len(values)))
        bomb = await session.open("ModelStreamInfer", [(b"grpc-encoding", b"gzip")])
        small = framed(infer_request().SerializeToString())
        packed = framed(gzip.compress(big.SerializeToString(), 1), 1) + small
        session.pipe.send(data(bomb.number, packed, end=True))
        turns = 0
        while session.server._memory.inflate_queue._steps:
            turns += 1
            await asyncio.sleep(0)
        assert turns > 4 * len(values) // SLICE_BYTES // 2
        await session.ended(bomb)
        assert (bomb.code, len(bomb.messages())) == (OK, 2)

    run(check)


def test_a_stream_of_requests_may_be_idle() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        session.listener.on_tick(asyncio.get_running_loop().time() + 1000)
        await session.settle()
        assert not stream.is_over
        await session.message(stream, infer_request().SerializeToString(), end=True)
        assert (await session.ended(stream)).code == OK

    run(check)


# Streams.


def stream_replies(call: Call) -> list[Message]:
    return [STREAM_REPLY.FromString(each) for each in call.messages()]


def test_a_stream_answers_each_request_and_ends_after_the_client() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        for number in range(5):
            await session.message(stream, infer_request([float(number)], id=str(number)).SerializeToString())
        found = {each.infer_response.id: each.infer_response for each in stream_replies(stream)}
        assert {key: struct.unpack("<f", each.raw_output_contents[0])[0] for key, each in found.items()} == {
            str(number): number for number in range(5)
        }
        assert not stream.is_over
        await session.send(data(stream.number, end=True))
        assert stream.code == OK

    run(check)


def test_a_stream_that_ends_early_for_its_client_finishes_what_was_asked() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        for _ in range(3):
            await session.message(stream, infer_request().SerializeToString())
        await session.send(data(stream.number, end=True))
        assert not stream.is_over
        session.router.go.set()  # type: ignore[attr-defined]
        await session.ended(stream)
        assert (stream.code, len(stream_replies(stream))) == (OK, 3)

    run(check, held_router)


def test_an_error_in_a_stream_names_its_request_and_the_stream_goes_on() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        await session.message(stream, infer_request(model_name="no", id="bad").SerializeToString())
        await session.message(stream, b"\xff")
        await session.message(stream, infer_request(id="good").SerializeToString(), end=True)
        await session.ended(stream)
        unknown, broken, good = stream_replies(stream)
        assert unknown.error_message.startswith("Request for unknown model")
        assert unknown.infer_response.id == "bad"
        assert "failed to parse" in broken.error_message
        assert (good.error_message, good.infer_response.id, stream.code) == ("", "good", OK)

    run(check)


def test_an_error_ends_the_stream_of_a_client_that_wants_it_so() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer", [(b"triton_grpc_error", b"true")])
        await session.message(stream, infer_request().SerializeToString())
        await session.message(stream, infer_request(model_name="no").SerializeToString())
        assert (stream.code, len(stream.messages())) == (NOT_FOUND, 1)
        assert stream.text.startswith("Request for unknown model")

    run(check)


def test_a_stream_that_ends_at_an_error_cancels_its_other_requests() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer", [(b"triton_grpc_error", b"true")])
        await session.message(stream, infer_request().SerializeToString())
        await session.message(stream, infer_request(model_name="no").SerializeToString())
        assert stream.code == NOT_FOUND
        assert session.router.unclosed_requests == 0

    run(check, held_router)


def test_a_stream_that_is_cancelled_cancels_all_its_requests() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        for _ in range(4):
            await session.message(stream, infer_request().SerializeToString())
        assert session.router.unclosed_requests == 4
        await session.send(frames.rst_stream(stream.number, frames.CANCEL))
        assert session.router.unclosed_requests == 0

    run(check, held_router)


def test_the_deadline_of_a_stream_ends_it_with_what_runs_in_it() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer", [(b"grpc-timeout", b"20m")])
        await session.message(stream, infer_request().SerializeToString())
        assert (await session.ended(stream)).code == DEADLINE
        assert "Request timeout expired" in stream.text

    run(check, held_router)


def test_requests_beyond_the_limit_of_a_stream_are_refused_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_handlers, "OPEN_LIMIT", 2)

    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        for _ in range(3):
            await session.message(stream, infer_request().SerializeToString())
        (refused,) = stream_replies(stream)
        assert "wait for their answers" in refused.error_message
        session.router.go.set()  # type: ignore[attr-defined]
        await session.send(data(stream.number, end=True))
        await session.ended(stream)
        assert (len(stream.messages()), stream.code) == (3, OK)

    run(check, held_router)


def test_a_stream_lets_in_as_much_as_its_requests_free() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        message = framed(infer_request([1.0] * 4000, model_name="no").SerializeToString())
        sent = 0
        for _ in range(4 * STREAM_WINDOW // len(message)):
            assert sent + len(message) <= STREAM_WINDOW + stream.granted, "the window does not grow"
            await session.send(data(stream.number, message))
            sent += len(message)

    run(check)


def test_a_stream_whose_requests_wait_takes_no_more_than_its_window() -> None:
    async def check(session: RpcSession) -> None:
        stream = await session.open("ModelStreamInfer")
        message = framed(infer_request([1.0] * 4000).SerializeToString())
        sent = 0
        while sent + len(message) <= STREAM_WINDOW + stream.granted:
            await session.send(data(stream.number, message))
            sent += len(message)
            assert sent < 4 * STREAM_WINDOW, "a client may send without end"
        session.router.go.set()  # type: ignore[attr-defined]
        await session.settle()
        assert sent + len(message) <= STREAM_WINDOW + stream.granted

    run(check, held_router)


def test_a_gateway_that_is_replaced_ends_idle_streams_and_finishes_others() -> None:
    async def check(session: RpcSession) -> None:
        idle = await session.open("ModelStreamInfer")
        busy = await session.open("ModelStreamInfer")
        await session.message(busy, infer_request().SerializeToString())
        session.listener.pre_shutdown()
        await session.settle()
        assert (idle.code, idle.trailers["mmsup-code"]) == (UNAVAILABLE, "draining")
        assert not busy.is_over
        session.router.go.set()  # type: ignore[attr-defined]
        await session.ended(busy)
        assert (busy.code, len(busy.messages())) == (UNAVAILABLE, 1)

    run(check, held_router)


# Known messages.


def raw_request(values: list[float], shape: list[int] | None = None, **fields: object) -> Message:
    made = message_class("inference.ModelInferRequest")(model_name="m", **fields)
    made.inputs.add(name="X", datatype="FP32", shape=shape or [len(values)])
    made.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return made


def test_messages_that_differ_in_their_tensors_alone_get_their_own_answers() -> None:
    async def check(session: RpcSession) -> None:
        for number in range(6):
            for size in (1, 2, 3):
                values = [float(number * 10 + size)] * size
                call = await session.unary("ModelInfer", raw_request(values, id="q"))
                reply = infer_reply(call)
                assert reply.raw_output_contents[0] == struct.pack(f"<{size}f", *values)
                assert (list(reply.outputs[0].shape), reply.id) == ([size], "q")

    run(check)


def test_a_message_as_long_as_a_known_one_is_not_taken_for_it() -> None:
    async def check(session: RpcSession) -> None:
        session.router.serve("n", metadata(("X", "FP32", (-1,))))
        assert (await session.unary("ModelInfer", raw_request([1.0, 2.0]))).code == OK
        other = raw_request([1.0, 2.0])
        other.model_name = "n"
        assert infer_reply(await session.unary("ModelInfer", other)).model_name == "n"
        wrong = raw_request([1.0, 2.0], [3])
        assert (await session.unary("ModelInfer", wrong)).code == INVALID
        assert (await session.unary("ModelInfer", raw_request([4.0, 2.0]))).code == OK

    run(check)


def test_a_known_message_is_checked_anew_when_the_model_has_changed() -> None:
    async def check(session: RpcSession) -> None:
        for _ in range(3):
            assert (await session.unary("ModelInfer", raw_request([1.0, 2.0]))).code == OK
        session.router.serve("m", metadata(("X", "FP32", (3,))))
        call = await session.unary("ModelInfer", raw_request([1.0, 2.0]))
        assert (call.code, "unexpected shape" in call.text) == (INVALID, True)

    run(check)


def test_a_known_message_is_known_again_after_the_model_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(session: RpcSession) -> None:
        assert (await session.unary("ModelInfer", raw_request([1.0, 2.0]))).code == OK
        session.router.serve("m", metadata(("X", "FP32", (-1,))))  # as after a sleep
        assert (await session.unary("ModelInfer", raw_request([1.0, 2.0]))).code == OK
        monkeypatch.setattr(request_document, "parse_request", lambda *_: pytest.fail("it was checked once more"))
        assert (await session.unary("ModelInfer", raw_request([3.0, 4.0]))).code == OK

    run(check)


@pytest.mark.parametrize("is_raw", [True, False])
def test_what_only_looks_like_the_last_tensor_is_not_taken_for_it(is_raw: bool) -> None:
    first = raw_request([1.0, 2.0]) if is_raw else infer_request([1.0, 2.0])

    async def check(session: RpcSession) -> None:
        for values in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]):
            tensor = b"\x3a\x08" + struct.pack("<2f", *values)
            message = (
                first.SerializeToString() + b"\x7a" + bytes((len(tensor),)) + tensor
            )  # in a field that is not known
            reply = infer_reply(await session.unary("ModelInfer", message))
            assert reply.raw_output_contents[0] == struct.pack("<2f", 1.0, 2.0)

    run(check)
