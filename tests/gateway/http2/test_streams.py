"""What a client's frames mean for its streams, and what they are answered with."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hpack import Encoder

from http2_client import GET, Frame, Peer, data, frame, headers
from mmsup.gateway.http2 import frames
from mmsup.gateway.http2.flood_limit import ALLOWANCES, ANSWERED, EMPTY, UPDATES
from mmsup.gateway.http2.frames import ConnectionFault
from mmsup.gateway.http2.header_blocks import BLOCK_LIMIT_BYTES
from mmsup.gateway.http2.streams import CONNECTION_WINDOW, SHORT_S, STREAM_WINDOW, STREAMS_LIMIT, are_sound
from mmsup.ipc.rpc.header_literals import Headers, block_of

PRIORITY_OF_ITSELF = b"\0\0\0\x03\x10"


def fault_of(peer: Peer, *given: bytes) -> ConnectionFault:
    with pytest.raises(ConnectionFault) as caught:
        peer.send(*given)
    return caught.value


def resets(found: list[Frame]) -> list[tuple[int, int]]:
    """Streams that were reset, with their codes."""
    return [(each.stream, each.number) for each in found if each.kind == frames.RST_STREAM]


def test_a_request_comes_as_headers_data_and_end() -> None:
    peer = Peer()
    stream, handler = peer.opened(end=False)
    assert stream.headers == GET
    assert not peer.send(data(1, b"abc"), data(1, b"de", end=True))
    assert (handler.body, handler.events) == (b"abcde", ["data", "data", "end"])


def test_headers_alone_may_end_a_request() -> None:
    _, handler = Peer().opened(end=True)
    assert handler.events == ["end"]


def test_empty_data_ends_a_request() -> None:
    peer = Peer()
    _, handler = peer.opened(end=False)
    peer.send(data(1, end=True))
    assert handler.events == ["end"]


def test_trailers_of_a_client_end_its_request_and_say_nothing() -> None:
    peer = Peer()
    _, handler = peer.opened(end=False)
    assert not peer.send(data(1, b"abc"), headers(1, block_of([(b"x", b"y")]), end=True))
    assert handler.events == ["data", "end"]


def test_more_headers_that_do_not_end_the_request_reset_it() -> None:
    peer = Peer()
    _, handler = peer.opened(end=False)
    assert resets(peer.send(headers(1))) == [(1, frames.PROTOCOL_ERROR)]
    assert handler.events == ["reset"]


@pytest.mark.parametrize("late", [data(1, b"x"), data(1, end=True), headers(1, end=True)])
def test_what_comes_after_the_end_resets_the_stream(late: bytes) -> None:
    peer = Peer()
    _, handler = peer.opened(end=True)
    assert resets(peer.send(late)) in ([(1, frames.STREAM_CLOSED)], [(1, frames.PROTOCOL_ERROR)])
    assert handler.events == ["end", "reset"]


@pytest.mark.parametrize(
    "late",
    [
        data(1, b"x"),
        headers(1, end=True),
        frame(frames.RST_STREAM, bytes(4), 1),
        frame(frames.WINDOW_UPDATE, b"\0\0\0\1", 1),
        frame(frames.PRIORITY, bytes(5), 1),
    ],
)
def test_what_was_on_its_way_when_we_ended_a_stream_is_ignored(late: bytes) -> None:
    peer = Peer()
    stream, handler = peer.opened(end=False)
    stream.send_headers(b"")
    stream.end(b"")
    peer.taken()
    assert not peer.send(late)
    assert handler.events == []


@pytest.mark.parametrize(
    "early", [data(5, b"x"), frame(frames.RST_STREAM, bytes(4), 5), frame(frames.WINDOW_UPDATE, b"\0\0\0\1", 5)]
)
def test_a_frame_on_a_stream_that_was_never_opened_ends_the_connection(early: bytes) -> None:
    peer = Peer()
    peer.opened(3)
    assert fault_of(peer, early).code == frames.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "wrong", [data(0, b"x"), data(2, b"x"), headers(0), headers(2), frame(frames.RST_STREAM, bytes(4))]
)
def test_a_number_that_no_stream_of_a_client_has_ends_the_connection(wrong: bytes) -> None:
    peer = Peer()
    peer.opened(3)
    assert fault_of(peer, wrong).code == frames.PROTOCOL_ERROR


def test_streams_are_opened_in_the_order_of_their_numbers_and_others_are_over() -> None:
    peer = Peer()
    peer.opened(5)
    peer.send(headers(3, end=True))
    assert list(peer.handlers) == [5]


@pytest.mark.parametrize("kind", [frames.SETTINGS, frames.PING, frames.GOAWAY])
def test_a_frame_of_the_connection_on_a_stream_ends_the_connection(kind: int) -> None:
    peer = Peer()
    peer.opened()
    assert fault_of(peer, frame(kind, bytes(8 if kind != frames.SETTINGS else 0), 1)).code == frames.PROTOCOL_ERROR


def test_a_client_may_not_push() -> None:
    assert fault_of(Peer(), frame(frames.PUSH_PROMISE, bytes(4), 1)).code == frames.PROTOCOL_ERROR


def test_frames_of_unknown_kinds_are_ignored() -> None:
    peer = Peer()
    assert not peer.send(frame(77, b"whatever", 9), frame(frames.PRIORITY, bytes(5), 9), frame(frames.GOAWAY, bytes(8)))
    peer.opened()


def test_a_ping_is_answered_with_its_bytes_and_an_answer_is_not() -> None:
    peer = Peer()
    assert peer.send(frame(frames.PING, b"12345678")) == [Frame(frames.PING, frames.ACK, 0, b"12345678")]
    assert not peer.send(frame(frames.PING, b"12345678", flags=frames.ACK))
    assert fault_of(peer, frame(frames.PING, b"1234567")).code == frames.FRAME_SIZE_ERROR


def test_settings_are_acknowledged_and_their_acknowledgement_is_not() -> None:
    peer = Peer()
    assert peer.send(frames.settings({99: 1})) == [Frame(frames.SETTINGS, frames.ACK, 0, b"")]
    assert not peer.send(frames.SETTINGS_ACK)


# Header blocks over several frames.


def test_a_block_in_pieces_is_that_of_its_first_frame() -> None:
    peer = Peer()
    block = block_of(GET)
    peer.send(
        headers(1, block[:5], end=True, flags=0),
        frame(frames.CONTINUATION, block[5:9], 1),
        frame(frames.CONTINUATION, block[9:], 1, frames.END_HEADERS),
    )
    assert peer.handlers[1].stream.headers == GET
    assert peer.handlers[1].events == ["end"]


@pytest.mark.parametrize(
    "between",
    [
        data(1, b"x"),
        headers(3),
        frame(frames.PING, bytes(8)),
        frame(frames.WINDOW_UPDATE, b"\0\0\0\1"),
        frame(77),
        frame(frames.CONTINUATION, b"", 3, frames.END_HEADERS),
    ],
)
def test_nothing_may_come_between_the_pieces_of_a_block(between: bytes) -> None:
    peer = Peer()
    peer.opened(1, end=False)
    assert fault_of(peer, headers(5, b"", flags=0), between).code == frames.PROTOCOL_ERROR


def test_a_piece_without_a_beginning_ends_the_connection() -> None:
    assert fault_of(Peer(), frame(frames.CONTINUATION, b"", 1, frames.END_HEADERS)).code == frames.PROTOCOL_ERROR


def test_a_block_in_too_many_bytes_ends_the_connection() -> None:
    peer = Peer()
    pieces = [frame(frames.CONTINUATION, bytes(8192), 1)] * (BLOCK_LIMIT_BYTES // 8192 + 1)
    assert fault_of(peer, headers(1, b"", flags=0), *pieces).code == frames.ENHANCE_YOUR_CALM


def test_a_block_in_too_many_pieces_ends_the_connection() -> None:
    pieces = [frame(frames.CONTINUATION, b"", 1)] * (int(ALLOWANCES[EMPTY][0]) + 50)
    assert fault_of(Peer(), headers(1, b"", flags=0), *pieces).code == frames.ENHANCE_YOUR_CALM


def test_blocks_of_streams_that_are_refused_or_over_still_count_for_the_table() -> None:
    peer, encoder = Peer(), Encoder()
    peer.opened(1, end=True)
    bad = encoder.encode([(b"first", b"1"), (b":path", b"late")])
    assert resets(peer.send(headers(3, bad))) == [(3, frames.PROTOCOL_ERROR)]
    peer.send(headers(1, encoder.encode([(b"second", b"2")]), end=True))
    peer.send(headers(5, encoder.encode([*GET, (b"first", b"1"), (b"second", b"2")]), end=True))
    assert peer.handlers[5].stream.headers[-2:] == [(b"first", b"1"), (b"second", b"2")]


def test_a_stream_that_depends_on_itself_does_not_put_the_table_out_of_step() -> None:
    peer, encoder = Peer(), Encoder()
    block = encoder.encode([*GET, (b"first", b"1")])
    peer.send(headers(3, PRIORITY_OF_ITSELF + block, flags=frames.END_HEADERS | frames.HAS_PRIORITY))
    peer.send(headers(5, encoder.encode([*GET, (b"first", b"1")]), end=True))
    assert peer.handlers[5].stream.headers[-1] == (b"first", b"1")


# What a request may say.


@pytest.mark.parametrize(
    "wrong",
    [
        GET[1:],
        [GET[0], *GET[2:]],
        [*GET[:2], GET[3]],
        [*GET, GET[0]],
        [*GET, (b":status", b"200")],
        [*GET[:3], (b"a", b"b"), GET[3]],
        [*GET, (b"Upper", b"x")],
        [*GET, (b"", b"x")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"a", b"x\r\ny: z")],
        [*GET, (b"a", b"\0")],
    ],
)
def test_headers_that_are_not_sound_reset_their_stream_and_harm_no_other(wrong: Headers) -> None:
    assert not are_sound(wrong)
    peer = Peer()
    _, handler = peer.opened(1)
    assert resets(peer.send(headers(3, block_of(wrong)))) == [(3, frames.PROTOCOL_ERROR)]
    assert (list(peer.handlers), handler.events) == ([1], ["end"])


def test_headers_that_grpc_clients_send_are_sound() -> None:
    assert are_sound([*GET, (b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"x-bin", b"/w==")])


# How many.


def test_streams_beyond_the_limit_are_refused_and_the_others_stay() -> None:
    peer = Peer()
    for number in range(STREAMS_LIMIT):
        peer.opened(2 * number + 1, end=False)
    over = 2 * STREAMS_LIMIT + 1
    assert resets(peer.send(headers(over))) == [(over, frames.REFUSED_STREAM)]
    assert len(peer.streams.open) == STREAMS_LIMIT
    peer.handlers[1].stream.reset(frames.CANCEL)
    peer.taken()
    peer.opened(over + 2)


def test_streams_that_are_opened_and_reset_at_once_end_the_connection() -> None:
    peer = Peer()
    each = (headers(number) + frames.rst_stream(number, frames.CANCEL) for number in range(1, 10_000, 2))
    assert fault_of(peer, *each).code == frames.ENHANCE_YOUR_CALM
    assert not peer.streams.open or len(peer.streams.open) == 1
    assert all(each.events[-1] == "reset" for each in list(peer.handlers.values())[:-1])


def test_a_client_may_give_up_all_its_streams_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls took too long; others of the connection go on."""
    peer = Peer()
    for number in range(1, 2 * STREAMS_LIMIT, 2):
        peer.opened(number)
    later_s = time.monotonic() + SHORT_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    peer.send(b"".join(frames.rst_stream(number, frames.CANCEL) for number in range(3, 2 * STREAMS_LIMIT, 2)))
    assert list(peer.streams.open) == [1]


def after_headers(late: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda number: headers(number, end=True) + late(number)


BREACHES: dict[str, Callable[[int], bytes]] = {
    "window update of 0": after_headers(lambda number: frames.window_update(number, 0)),
    "window overflow": after_headers(lambda number: frames.window_update(number, frames.MAX_WINDOW)),
    "data after the end": after_headers(lambda number: data(number, b"x")),
    "unsound headers": lambda number: headers(number, b""),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_streams_that_a_client_makes_us_reset_count_like_those_that_it_resets(breach: Callable[[int], bytes]) -> None:
    """Else it has as many requests as it likes begun for nothing (CVE-2025-8671)."""
    assert fault_of(Peer(), *map(breach, range(1, 10_000, 2))).code == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (ANSWERED, frame(frames.PING, bytes(8))),
        (ANSWERED, frames.settings({})),
        (EMPTY, data(1)),
        (UPDATES, frames.window_update(1, 1)),
        (UPDATES, frame(frames.PRIORITY, bytes(5), 1)),
    ],
)
def test_a_flood_of_frames_that_cost_us_ends_the_connection(kind: str, given: bytes) -> None:
    peer = Peer()
    peer.opened(1, end=False)
    fault = fault_of(peer, given * (int(ALLOWANCES[kind][0]) + 20_000))
    assert fault.code == frames.ENHANCE_YOUR_CALM
    assert fault.text == ("too_many_pings" if kind == ANSWERED else f"too many frames ({kind})")


# What a client may send.


def test_a_stream_takes_its_window_and_what_its_handler_grants_and_not_more() -> None:
    peer = Peer()
    stream, handler = peer.opened(end=False)
    assert not peer.send(data(1, bytes(STREAM_WINDOW)))
    stream.grant(5)
    assert [(each.stream, each.number) for each in peer.taken()] == [(1, 5)]
    assert not peer.send(data(1, bytes(5)))
    assert resets(peer.send(data(1, b"x"))) == [(1, frames.FLOW_CONTROL_ERROR)]
    assert (len(handler.body), handler.events[-1]) == (STREAM_WINDOW + 5, "reset")


def test_padding_takes_of_a_window_and_is_given_back() -> None:
    peer = Peer()
    _, handler = peer.opened(end=False)
    granted = 0
    for _ in range(3 * STREAM_WINDOW // 257):
        peer.streams.on_data_head(1, 257)
        peer.streams.on_data(1, memoryview(b"x"))
        peer.streams.on_data_end(1, frames.PADDED)
        found = peer.taken()
        assert not resets(found)
        granted += sum(each.number for each in found if each.stream == 1)
    assert granted > STREAM_WINDOW
    assert len(handler.body) == 3 * STREAM_WINDOW // 257


def test_the_connection_s_window_is_given_back_whatever_becomes_of_the_data() -> None:
    peer = Peer()
    stream, _ = peer.opened(1, end=False)
    stream.reset(frames.CANCEL)
    peer.taken()
    granted, chunk = 0, bytes(1 << 16)
    for _ in range(3 * CONNECTION_WINDOW >> 16):
        granted += sum(each.number for each in peer.send(data(1, chunk)) if each.kind == frames.WINDOW_UPDATE)
    assert granted >= 2 * CONNECTION_WINDOW


def test_a_client_that_sends_more_than_the_connection_s_window_loses_the_connection() -> None:
    peer = Peer()
    peer.opened(1, end=False)
    with pytest.raises(ConnectionFault) as caught:
        peer.streams.on_data_head(1, CONNECTION_WINDOW + 1)
    assert caught.value.code == frames.FLOW_CONTROL_ERROR


# The end.


def test_a_reset_reaches_its_handler_once_and_frees_the_stream() -> None:
    peer = Peer()
    _, handler = peer.opened(1, end=False)
    again = frame(frames.RST_STREAM, bytes(4), 1)
    assert not peer.send(again, again, data(1, b"x"))
    assert handler.events == ["reset"]
    assert not peer.streams.open


def test_a_connection_that_ends_opens_nothing_and_finishes_what_is_open() -> None:
    peer = Peer()
    _, handler = peer.opened(1, end=False)
    peer.streams.is_ending = True
    assert not peer.send(headers(3), data(3, b"x", end=True), frame(frames.RST_STREAM, bytes(4), 3), headers(5))
    assert list(peer.handlers) == [1]
    peer.send(data(1, b"abc", end=True))
    assert handler.events == ["data", "end"]
